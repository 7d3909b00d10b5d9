"""Grades by a language model: an endpoint to ask, and grades that are kept as they come."""
