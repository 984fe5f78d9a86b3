"""`gammalab serve` and `gammalab fleet`: policies under load."""
