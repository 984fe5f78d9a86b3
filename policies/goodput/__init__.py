"""Rules that weigh expected tokens against seconds."""
