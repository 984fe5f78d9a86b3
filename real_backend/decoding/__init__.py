"""Speculative decoding of a pair: the engine, its steps, and sittings."""
