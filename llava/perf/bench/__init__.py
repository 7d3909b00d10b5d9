"""Time, memory and counted work, all tokens next to few: `python -m llava.perf.bench`."""
