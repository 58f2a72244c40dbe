"""Fixtures of the contract tests."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.models import hub_download
from tests.contract.hub_models import FILES
from tests.hub_server import HubServer, Repo, hub_server


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Gives torch one thread: tiny tensors are slower with more, and sums come in the same order everywhere.

    torch is looked up, not imported: many tests do without it.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub with the repository `org/name`; retries come at once."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setattr(hub_download, "RETRY_SECONDS", (0.001,) * 4)
    with hub_server() as server:
        server.repos["org/name"] = Repo()
        server.repos["org/name"].commit(FILES)
        yield server


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A volume with a base and two adapters; its makers import torch, so they are imported here."""
    from tests.reference.huggingface_model import save_llama
    from tests.reference.peft_merge import make_adapter

    save_llama(tmp_path / "base")
    for name, seed in (("a", 3), ("b", 4)):
        make_adapter(tmp_path / name, seed=seed)
    return tmp_path


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """A folder for a volume, which its first user makes."""
    return tmp_path / "volume"


@pytest.fixture(scope="module")
def log_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("logs")
