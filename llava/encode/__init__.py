"""Encode pictures to visual tokens on disk."""
