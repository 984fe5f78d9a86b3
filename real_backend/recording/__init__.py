"""What a pair and a machine leave as files: traces (capture) and timings (measure)."""
