"""Fixtures that several tiers of tests use, and which tests this machine can run at all."""

from pathlib import Path

import pytest

pytest_plugins = ["tests.redis_server"]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests marked `gpu` are left out where there is no NVIDIA device: they are not skipped, they are not asked for."""
    if any(Path("/dev").glob("nvidia[0-9]*")):
        return
    left_out = [item for item in items if item.get_closest_marker("gpu")]
    if left_out:
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)
