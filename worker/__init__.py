"""The second door: jobs in, outcomes out."""
