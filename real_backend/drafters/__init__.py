"""Drafters, which propose tokens to a target: a file a kind; drafter.py is what all have."""
