"""Fixtures that several tiers of tests use."""

pytest_plugins = ["tests.redis_server"]
