"""`gammalab train`: networks, how they are trained, and what learning costs."""
