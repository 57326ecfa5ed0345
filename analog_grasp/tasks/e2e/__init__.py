"""The E2E NLG Challenge: data and metrics."""
