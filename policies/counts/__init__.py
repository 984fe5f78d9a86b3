"""Rules that read how many tokens were accepted, and the size of the batch."""
