"""One request after another: the round rule, compiled replay, bounds in hindsight, metrics."""
