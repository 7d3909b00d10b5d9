"""Projectors from the vision tower's channels to the language model's."""
