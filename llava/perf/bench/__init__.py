"""How fast it is, side by side: `python -m llava.perf.bench`."""
