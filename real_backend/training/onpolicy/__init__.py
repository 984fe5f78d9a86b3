"""Drafters for a given target, trained on what it says itself."""
