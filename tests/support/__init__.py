"""What the test modules share, none of which imports another."""
