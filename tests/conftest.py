"""Fixtures that several tiers of tests use, and the choice of the tests that this machine can run."""

import shutil
from pathlib import Path

import pytest

from tests.tokenizer_sets import PUBLISHED_FOLDER, TOKENIZER_SETS, TokenizerSet

pytest_plugins = ["tests.redis_server"]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselects tests that need an NVIDIA device, the published tokenizers or tmux, where there are none."""
    missing = set()
    if not any(Path("/dev").glob("nvidia[0-9]*")):
        missing.add("gpu")
    if not PUBLISHED_FOLDER.is_dir():
        missing.add("published")
    if shutil.which("tmux") is None:
        missing.add("tmux")
    deselected = [item for item in items if any(item.get_closest_marker(name) for name in missing)]
    if deselected:
        items[:] = [item for item in items if item not in deselected]
        config.hook.pytest_deselected(items=deselected)


@pytest.fixture(scope="session", params=TOKENIZER_SETS)
def tokenizers(request: pytest.FixtureRequest) -> TokenizerSet:
    """Each set of tokenizers in turn."""
    chosen: TokenizerSet = request.param
    return chosen
