"""`gammalab report`: the HTML page and its figures."""
