"""`gammalab export`: a policy as an engine's settings, and what is lost."""
