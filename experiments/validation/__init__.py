"""`gammalab validate`: a sitting on the real engine beside its replay."""
