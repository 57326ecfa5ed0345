"""Report of a run: tables, findings, figures and the HTML page."""
