"""Small trained networks: what they see, how they decide, and their files."""
