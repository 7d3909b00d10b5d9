"""How concentrated a vision tower's attention is."""
