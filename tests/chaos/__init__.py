"""Fault driver: a seeded sequence of faults against a running service under load, and the account of every job."""
