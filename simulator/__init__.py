"""Time without a GPU: costs, rounds (the rule), replay, kernels, hindsight, metrics."""
