"""Jobs that make or check a model."""
