"""Inside transformers: policies in `generate`, and its assisted runs as traces."""
