"""Traces that a bounded draft left open: what is known, and what may be behind the rest."""
