"""`gammalab study-published`: our numbers beside published ones."""
