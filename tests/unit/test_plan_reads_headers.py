"""A plan is made from headers: of thirteen gigabytes of weights it reads a few hundred kilobytes.

Counted are the bytes that this process asked the kernel for (proc(5), `rchar`), and mapping a file is an error. The weight files are
as large as those of LLaMA-7B and hold nothing: what is not written takes no room on the disk.
"""

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import pytest

from services.kinds import AnyRequest
from services.kinds.convert import ConvertRequest
from services.kinds.merge import MergeRequest
from services.models.store import ModelStore
from services.models.summary import describe_folder
from services.preflight import preflight
from tests.reference.tensor_files import ITEM_BYTES, llama_config, llama_shapes
from tests.reference.tokenizer_files import piece_names, sentencepiece_file

SIZES = {"hidden": 4096, "layers": 32, "ffn": 11008, "rows": 32000}
COUNTER = Path("/proc/self/io")

pytestmark = pytest.mark.skipif(
    not COUNTER.is_file(), reason="the kernel counts no bytes here (/proc/self/io)"
)


def sparse_safetensors(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """A file of the right size whose data were never written."""
    header: dict[str, Any] = {}
    offset = 0
    for name, shape in shapes.items():
        end = offset + math.prod(shape) * ITEM_BYTES["F16"]
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + offset)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelStore:
    """LLaMA-7B and an adapter of rank 64 on all its projections, in full size."""
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    base.mkdir()
    config = llama_config(hidden=4096, layers=32, ffn=11008, rows=32000)
    (base / "config.json").write_text(
        json.dumps({**config, "num_attention_heads": 32, "num_key_value_heads": 32})
    )
    shapes = llama_shapes(**SIZES, kv=4096)
    sparse_safetensors(base / "model.safetensors", shapes)
    (base / "tokenizer.model").write_bytes(sentencepiece_file(piece_names(32000)))
    adapter.mkdir()
    settings = {"peft_type": "LORA", "r": 64, "lora_alpha": 128, "target_modules": ["q_proj", "down_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    pairs: dict[str, tuple[int, ...]] = {}
    for name, (rows, *columns) in shapes.items():
        if "_proj" in name:
            at = f"base_model.model.{name.removesuffix('.weight')}"
            pairs |= {f"{at}.lora_A.weight": (64, *columns), f"{at}.lora_B.weight": (rows, 64)}
    sparse_safetensors(adapter / "adapter_model.safetensors", pairs)
    monkeypatch.setattr(ModelStore, "free_bytes", lambda self: 10**12)
    monkeypatch.setattr("mmap.mmap", no_map)
    return ModelStore(tmp_path)


def no_map(*_: object, **__: object) -> NoReturn:
    raise AssertionError("a file was mapped")


def bytes_read() -> int:
    fields = dict(line.split(": ") for line in COUNTER.read_text().splitlines())
    return int(fields["rchar"])


REQUESTS: dict[str, AnyRequest] = {
    "merge": MergeRequest(kind="merge", base="base", adapters=["adapter"], target="new"),
    "convert": ConvertRequest(kind="convert", source="base", target="new", output_format="meta", ranks=2),
    "gguf": ConvertRequest(kind="convert", source="base", target="new", output_format="gguf", dtype="q8_0"),
}


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
def test_a_plan_reads_no_weights(store: ModelStore, request_: AnyRequest) -> None:
    before = bytes_read()
    plan = preflight(request_, store, {})
    assert plan.reads[0].size_bytes == 13476831232, "LLaMA-7B has 6,738,415,616 parameters"
    assert bytes_read() - before < 2_000_000


def test_describing_a_model_reads_no_weights(store: ModelStore) -> None:
    before = bytes_read()
    found = [describe_folder(store.root / name, name) for name in ("base", "adapter")]
    assert [summary.problems for summary in found] == [[], []]
    assert found[0].parameters == 6738415616
    assert bytes_read() - before < 2_000_000
