"""Many requests at once: a server with a queue, continuous batching and memory in blocks."""
