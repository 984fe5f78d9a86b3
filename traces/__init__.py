"""Data at rest: Trace (schema, store), Timing (timing), RoundLog (roundlog), synthetic traces."""
