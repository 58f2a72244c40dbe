"""Merges and jobs that write GGUF: their checks, plans and manifests."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from services.checkpoints.write_hooks import WriteHooks
from services.errors import (
    VerificationFailed,
)
from services.files.gguf_header import read_gguf_header
from services.kinds.convert import ConvertRequest
from services.kinds.merge import MergeRequest
from services.merge import Merged, MergeOptions, merge
from services.models.manifest import read_manifest
from services.models.store import ModelStore
from services.preflight import preflight
from services.verify import verify_merge
from tests.contract.gguf_models import WIDE, tensors_of
from tests.job_context import job_context
from tests.miniature import MINIATURE, unpack_adapters
from tests.reference.huggingface_model import save_llama
from tests.reference.peft_merge import make_adapter
from worker.models import convert as convert_job
from worker.models import merge as merge_job


def merged(tmp_path: Path, **options: Any) -> tuple[Merged, MergeOptions]:
    save_llama(tmp_path / "base", torch.float16)
    adapter = make_adapter(tmp_path / "adapter", seed=3)
    (tmp_path / "target").mkdir()
    chosen = MergeOptions(output_format="gguf", **options)
    return merge(tmp_path / "base", [("adapter", adapter, 1.0)], tmp_path / "target", options=chosen), chosen


@pytest.mark.parametrize("dtype", [None, "F32", "BF16"])
def test_a_merge_is_checked_in_the_file(tmp_path: Path, dtype: str | None) -> None:
    found, options = merged(tmp_path, dtype=dtype)
    report = verify_merge(found, options, WriteHooks())
    assert (report.passed, report.tensors, report.vocabulary_size, report.tokenizer_size) == (
        True, 30, 101, 101,
    )  # fmt: skip
    assert 0 < report.largest_share_of_tolerance <= 1


def miniature_adapters(tmp_path: Path) -> list[tuple[str, Path, float]]:
    return [(folder.name, folder, 1.0) for folder in unpack_adapters(tmp_path)]


def test_a_merge_in_q8_0_is_checked_against_its_rounding(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    options = MergeOptions(output_format="gguf", dtype="Q8_0")
    found = merge(MINIATURE / "llama", miniature_adapters(tmp_path), tmp_path / "target", options=options)
    report = verify_merge(found, options, WriteHooks())
    assert report.passed
    assert 0.5 < report.largest_share_of_tolerance <= 1, "half a step is what rounding costs"


def test_a_changed_bit_does_not_pass(tmp_path: Path) -> None:
    found, options = merged(tmp_path)
    path = tmp_path / "target" / "model.gguf"
    place = read_gguf_header(path).tensors["blk.1.ffn_gate.weight"]
    data = bytearray(path.read_bytes())
    data[place.offset + 7] ^= 4
    path.write_bytes(data)
    with pytest.raises(VerificationFailed, match=r"'blk\.1\.ffn_gate\.weight' on the disk"):
        verify_merge(found, options, WriteHooks())


def test_rows_in_another_order_do_not_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A merge that left q and k in Hugging Face's order, its digests true."""
    import services.checkpoints.gguf_writer as written

    monkeypatch.setattr(written, "halves_to_interleaved_blocks", lambda blocks, heads, rows: blocks)
    found, options = merged(tmp_path)
    with pytest.raises(VerificationFailed, match=r"'model\.layers\.0\.self_attn\.q_proj\.weight' differs"):
        verify_merge(found, options, WriteHooks())


def test_a_job_publishes_a_file_of_the_planned_size_and_says_what_it_is(tmp_path: Path) -> None:
    save_llama(tmp_path / "base", torch.float16, **WIDE)
    store = ModelStore(tmp_path)
    request = ConvertRequest(kind="convert", source="base", target="new", output_format="gguf", dtype="q8_0")
    plan = preflight(request, store, {})

    result = convert_job.run(request, job_context(store.root))

    stored = tensors_of(tmp_path / "new")
    assert plan.output_bytes == result.bytes_written == sum(tensor.n_bytes for tensor in stored.values())
    elements = sum(math.prod(int(n) for n in tensor.shape) for tensor in stored.values())
    assert result.bits_per_weight == round(8 * result.bytes_written / elements, 2)
    model = result.model.model_dump()
    assert (model["kind"], model["problems"], model["dtypes"]) == ("gguf", [], ["q8_0", "float32"])
    assert (model["vocabulary_size"], model["architecture"]["name"]) == (101, "llama")
    assert (model["architecture"]["file_type"], model["architecture"]["tensors"]) == (7, 30)
    assert model["parameters"] == elements
    manifest = read_manifest(tmp_path / "new")
    assert manifest is not None
    assert manifest.kind == "gguf"
    assert manifest.tensors["blk.0.attn_q.weight"].dtype == "Q8_0"


def test_a_merged_alpaca_gets_its_template_in_the_modelfile(tmp_path: Path) -> None:
    save_llama(tmp_path / "base")
    make_adapter(tmp_path / "chinese-alpaca-lora", seed=3)
    store = ModelStore(tmp_path)
    request = MergeRequest(
        kind="merge", base="base", adapters=["chinese-alpaca-lora"], target="new", output_format="gguf"
    )

    merge_job.run(request, job_context(store.root))

    assert (tmp_path / "new" / "Modelfile").read_text() == (
        'FROM ./model.gguf\nTEMPLATE """{{ if .System }}{{ .System }}{{ else }}Below is an instruction that describes a '
        "task. Write a response that appropriately completes the request.{{ end }}\n\n### Instruction:\n\n"
        '{{ .Prompt }}\n\n### Response:\n\n{{ .Response }}"""\nPARAMETER stop "### Instruction:"\n'
    )
