"""Controllers of this house."""
