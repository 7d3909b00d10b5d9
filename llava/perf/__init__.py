"""How fast a model is and how far from the limit: calculation, measurement, benchmarks."""
