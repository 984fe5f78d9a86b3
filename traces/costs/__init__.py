"""Prices of steps: cost models side by side, and the one table that every runtime prices with."""
