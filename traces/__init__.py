"""Data at rest: Trace (schema, store), Timing (timing), RoundLog (roundlog), synthetic traces."""

PROJECT = "gammalab"  # other projects have packages of this name; see real_backend/__init__.py
