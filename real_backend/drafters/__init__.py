"""What proposes tokens to a target, a file a kind; drafter.py says what all of them have."""
