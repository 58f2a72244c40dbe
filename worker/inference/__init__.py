"""Jobs that run a loaded model."""
