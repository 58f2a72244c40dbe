"""Clients that people use, unchanged, against the running service."""
