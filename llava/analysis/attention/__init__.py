"""Where a vision tower looks: how its attention spreads over patches, layer by layer."""
