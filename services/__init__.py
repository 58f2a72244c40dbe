"""The house: what Graftwerk does. See docs/architecture.md for the walk of one job through it."""
