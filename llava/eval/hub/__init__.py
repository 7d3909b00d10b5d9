"""Benchmarks from Hugging Face data sets, written once as the files that the tasks read."""
