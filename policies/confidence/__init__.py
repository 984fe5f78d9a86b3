"""Rules that stop where the draft's own probabilities are in doubt."""
