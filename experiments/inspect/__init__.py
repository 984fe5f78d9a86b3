"""`gammalab policies` and `gammalab trace`: look at what is there, or bring it in."""
