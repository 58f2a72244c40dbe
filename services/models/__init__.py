"""The model volume: models are published whole and described from their headers."""
