"""How fast a model is, and how far from the lower bound: calculation, measurement, benchmarks."""
