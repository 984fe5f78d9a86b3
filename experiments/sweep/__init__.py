"""`gammalab sweep`: settings tuned on one half, judged on the other."""
