"""`gammalab fleet QUESTION`: a file a question, and the command over them."""
