"""How fast it is, side by side: `python -m llava.eval.bench`."""
