"""Whether the tower or the question chooses the better tokens."""
