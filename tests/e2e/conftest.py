"""The running product, and the models that most tests need.

With `GRAFTWERK_E2E_URL` the tests use the service at that address; its model volume is that of the compose project named by
`GRAFTWERK_E2E_COMPOSE`, or the folder `GRAFTWERK_E2E_MODELS_DIR`. Otherwise they start real processes on this machine.
"""

import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import openai
import pytest

from tests.e2e.product import (
    ComposeVolume,
    Json,
    LocalStack,
    LocalVolume,
    Product,
    Volume,
    local_stack,
)
from tests.e2e.slow_model import write_slow_adapter, write_slow_model
from tests.hub_server import HubServer, hub_server

HERE = Path(__file__).parent
MINIATURE = HERE.parent.parent / "examples" / "miniature"
TEMPLATE = "alpaca"
GREEDY = {"temperature": 0, "max_new_tokens": 48}
MODEL = "merged"
"""The model that the workflow leaves."""

LONG_SCHEMA = {
    "type": "object", "properties": {"a": {"type": "string", "minLength": 1000}}, "required": ["a"],
}  # fmt: skip
"""Schema whose values are long."""

URL = os.environ.get("GRAFTWERK_E2E_URL")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Marks these tests and runs them in one process; tests that kill processes need them on this machine."""
    mine = [item for item in items if HERE in item.path.parents]
    for item in mine:
        item.add_marker(pytest.mark.e2e)
        item.add_marker(pytest.mark.xdist_group("e2e"))
        item.add_marker(pytest.mark.enable_socket)
    if URL:
        here = (
            "test_processes.py", "test_gguf_processes.py", "test_backend.py", "test_hub.py", "test_chaos.py",
        )  # fmt: skip
        away = [item for item in mine if item.path.name in here or item.path.name.startswith("test_docs_")]
        config.hook.pytest_deselected(items=away)
        items[:] = [item for item in items if item not in away]


@pytest.fixture(scope="session")
def hub() -> Iterator[HubServer]:
    """The hub of the stack on this machine."""
    with hub_server() as running:
        yield running


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory, hub: HubServer) -> Iterator[LocalStack]:
    """Real processes on this machine, ended after the tests."""
    settings = {"HUB_ENABLED": "true", "HUB_TOKEN": hub.token}
    more = {f"GRAFTWERK_{name}": value for name, value in settings.items()} | {
        "HF_ENDPOINT": hub.url,
        "NO_PROXY": "*",
    }
    with local_stack(tmp_path_factory.mktemp("stack") / "data", **more) as running:
        yield running


@pytest.fixture(scope="session")
def product(request: pytest.FixtureRequest) -> Iterator[Product]:
    """The running product."""
    if URL:
        found = Product(URL, _volume_elsewhere())
        found.get("/readyz")
    else:
        running: LocalStack = request.getfixturevalue("stack")
        found = Product(running.url, LocalVolume(running.models_dir))
    yield found
    found.http.close()


def _volume_elsewhere() -> Volume:
    project = os.environ.get("GRAFTWERK_E2E_COMPOSE")
    return ComposeVolume(project) if project else LocalVolume(Path(os.environ["GRAFTWERK_E2E_MODELS_DIR"]))


class Incoming(NamedTuple):
    """Paths of the miniature's files under `incoming/`."""

    llama: str
    chinese_llama_lora: str
    chinese_alpaca_lora: str


@pytest.fixture(scope="session")
def incoming(product: Product) -> Incoming:
    """The miniature under `incoming/`: an original checkpoint and two adapters in zip archives."""
    names = ("llama", "chinese-llama-lora.zip", "chinese-alpaca-lora.zip")
    return Incoming(*(product.volume.put_incoming(MINIATURE / name, f"miniature-{name}") for name in names))


@pytest.fixture(scope="session")
def questions() -> list[dict[str, str]]:
    """Questions, each with the exact answer of the merged miniature."""
    found: list[dict[str, str]] = json.loads((MINIATURE / "questions.json").read_text(encoding="utf-8"))
    assert len(found) >= 20
    return found


class Line(NamedTuple):
    """The succeeded jobs of the whole workflow."""

    import_llama: Json
    import_chinese: Json
    import_alpaca: Json
    convert: Json
    merge: Json


@pytest.fixture(scope="session")
def line(product: Product, incoming: Incoming) -> Line:
    """Imports, converts and merges in sequence; leaves `llama`, `llama-hf`, `zh`, `alpaca`, `merged`."""
    return Line(
        product.run(kind="import", source={"path": incoming.llama}, target="llama"),
        product.run(kind="import", source={"zip": incoming.chinese_llama_lora}, target="zh"),
        product.run(kind="import", source={"zip": incoming.chinese_alpaca_lora}, target="alpaca"),
        product.run(kind="convert", source="llama", target="llama-hf"),
        product.run(kind="merge", base="llama-hf", adapters=["zh", "alpaca"], target="merged"),
    )


@pytest.fixture(scope="session")
def answers(questions: list[dict[str, str]]) -> list[tuple[str, str]]:
    """Questions, each with the answer that the model was trained to give."""
    return [(row["question"], row["answer"]) for row in questions]


@pytest.fixture(scope="session")
def client(product: Product, line: Line) -> Iterator[openai.OpenAI]:
    """OpenAI's own client."""
    with openai.OpenAI(base_url=f"{product.url}/v1", api_key="none", max_retries=0, timeout=120) as found:
        yield found


@pytest.fixture(scope="session")
def gguf_model(product: Product, line: Line) -> str:
    """The merged miniature as a GGUF file of 16-bit numbers."""
    product.run(kind="convert", source="merged", target="merged-gguf", output_format="gguf", dtype="float16")
    return "merged-gguf"


@pytest.fixture(scope="session")
def slow(product: Product, tmp_path_factory: pytest.TempPathFactory) -> Json:
    """A merge request without its target that takes seconds each time. Leaves `slow` and `slow-adapter`."""
    folder = tmp_path_factory.mktemp("slow")
    write_slow_model(folder / "slow", MINIATURE / "llama" / "tokenizer.model", vocab_size=608)
    write_slow_adapter(folder / "slow-adapter")
    for name in ("slow", "slow-adapter"):
        product.run(
            kind="import", source={"path": product.volume.put_incoming(folder / name, name)}, target=name
        )
    return {"kind": "merge", "base": "slow", "adapters": ["slow-adapter"], "dtype": "float32", "force": True}


@pytest.fixture(scope="session")
def unsafe_zip(product: Product, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An archive with a member whose path leads out of the folder."""
    path = tmp_path_factory.mktemp("unsafe") / "unsafe.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("adapter_config.json", "{}")
        archive.writestr("../escaped.txt", "out")
    return product.volume.put_incoming(path, "unsafe.zip")
