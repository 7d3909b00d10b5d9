"""Vision towers: pixels in, tokens out."""
