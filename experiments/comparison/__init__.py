"""`gammalab compare`: every controller on the same held-out requests, and the first screen."""
