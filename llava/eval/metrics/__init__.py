"""Metrics, one file each: pure functions from answers to scores."""
