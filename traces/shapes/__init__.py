"""Draft trees: their shapes, what a recording says of them, their prices, and which to try."""
