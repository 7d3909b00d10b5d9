"""Pictures turned into visual tokens on disk."""
