"""Data and metrics of the E2E NLG Challenge."""
