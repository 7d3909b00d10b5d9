"""Turn answers into scores: pure functions, a file for each metric; `matching` and `tally` are shared."""
