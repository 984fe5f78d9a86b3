"""Files of a pair and a machine: traces (capture) and timings (measure)."""
