"""Lengths, or stopping rules, as arms that are tried and kept."""
