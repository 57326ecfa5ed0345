"""Numerical back ends: random numbers, matrix products, converters and conductance programming."""
