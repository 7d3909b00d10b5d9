"""Tune LLaVA with VisionZip: flags, the steps of a run, checkpoints, memory and speed."""
