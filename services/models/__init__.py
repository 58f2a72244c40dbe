"""The shelf: models on the shared volume, published whole, described from their headers."""
