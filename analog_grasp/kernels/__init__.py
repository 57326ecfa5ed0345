"""Numerical back ends: random numbers, products, and reading tiles in torch and compiled."""
