"""Hyper-parameter search under simulated drift."""
