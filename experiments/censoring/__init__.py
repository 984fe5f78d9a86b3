"""Ratios on censored traces, as intervals over imputations."""
