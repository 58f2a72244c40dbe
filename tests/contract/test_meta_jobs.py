"""Merges and jobs that write Meta's layout: their checks, plans and manifests."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from services.checkpoints.write_hooks import WriteHooks
from services.errors import (
    VerificationFailed,
)
from services.files.torch_zip import read_torch_header
from services.kinds.convert import ConvertRequest
from services.kinds.merge import MergeRequest
from services.merge import MergeOptions, merge
from services.models.manifest import read_manifest
from services.models.store import ModelStore
from services.preflight import preflight
from services.verify import verify_merge
from tests.contract.meta_models import assert_same_bits, ranks_of, save_base, to_meta, written
from tests.job_context import job_context
from tests.reference.make_original import SMALL, random_state, save_original, split_ranks
from tests.reference.peft_merge import make_adapter
from worker.models import convert as convert_job
from worker.models import merge as merge_job


def test_a_merge_into_metas_layout_has_the_tensors_of_the_other_layout(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    adapter = make_adapter(tmp_path / "adapter", seed=3)
    (tmp_path / "plain").mkdir()
    (tmp_path / "meta").mkdir()
    chosen = [("adapter", adapter, 1.0)]
    plain = merge(base, chosen, tmp_path / "plain")

    options = MergeOptions(output_format="meta", ranks=4)
    found = merge(base, chosen, tmp_path / "meta", options=options)

    report = verify_merge(found, options, WriteHooks())
    assert found.written.digests == plain.written.digests
    assert (report.passed, report.tensors, report.digests_equal) == (True, 30, 30)
    back = written(tmp_path / "meta", tmp_path / "back")
    assert_same_bits(
        load_file(back / "model.safetensors"), load_file(tmp_path / "plain" / "model.safetensors")
    )


def test_a_changed_bit_in_one_rank_does_not_pass(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    adapter = make_adapter(tmp_path / "adapter", seed=3)
    (tmp_path / "meta").mkdir()
    options = MergeOptions(output_format="meta", ranks=4)
    found = merge(base, [("adapter", adapter, 1.0)], tmp_path / "meta", options=options)
    path = tmp_path / "meta" / "consolidated.02.pth"
    header = read_torch_header(path)["layers.1.feed_forward.w2.weight"]
    data = bytearray(path.read_bytes())
    data[header.offset + 5] ^= 1
    path.write_bytes(data)

    with pytest.raises(VerificationFailed, match=r"'model\.layers\.1\.mlp\.down_proj\.weight' on the disk"):
        verify_merge(found, options, WriteHooks())


def test_a_job_publishes_an_original_checkpoint_of_the_planned_size(tmp_path: Path) -> None:
    save_base(tmp_path / "base")
    make_adapter(tmp_path / "adapter", seed=3)
    store = ModelStore(tmp_path)
    request = MergeRequest(
        kind="merge", base="base", adapters=["adapter"], target="new", output_format="meta", ranks=4
    )  # fmt: skip
    plan = preflight(request, store, {})

    result = merge_job.run(request, job_context(store.root))

    found = ranks_of(tmp_path / "new")
    assert plan.output_bytes == result.bytes_written == sum(t.nbytes for part in found for t in part.values())
    assert plan.writes is not None
    assert plan.writes.ranks == 4
    assert (result.model.kind, result.model.ranks, result.model.problems) == (
        "original",
        4,
        [],
    )
    manifest = read_manifest(tmp_path / "new")
    assert manifest is not None
    assert (manifest.kind, len(manifest.tensors)) == ("original", 30)


def test_both_layouts_of_a_model_have_the_same_tensor_digest(tmp_path: Path) -> None:
    save_original(tmp_path / "source", split_ranks(random_state(SMALL), 2), SMALL.params)
    store = ModelStore(tmp_path)
    digests = {
        convert_job.run(ConvertRequest(kind="convert", source="source", target=f"as-{layout}", output_format=layout),
                     job_context(store.root)).tensor_digest
        for layout in ("huggingface", "meta")
    }  # fmt: skip
    assert len(digests) == 1


def test_a_plan_says_what_params_cannot_say(tmp_path: Path) -> None:
    """A context of 512 positions, and the feed-forward width 140 as a computed multiple."""
    save_base(tmp_path / "base", intermediate_size=140, max_position_embeddings=512)
    request = ConvertRequest(kind="convert", source="base", target="new", output_format="meta")
    plan = preflight(request, ModelStore(tmp_path), {})
    assert any(
        "multiple_of 4 and ffn_dim_multiplier 1.1 is computed to give" in text for text in plan.warnings
    )
    assert any("512 positions" in text for text in plan.warnings)


def test_a_model_without_a_tokenizer_file_is_written_with_a_warning(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    (base / "tokenizer.model").unlink()
    request = ConvertRequest(kind="convert", source="base", target="new", output_format="meta")
    warnings = preflight(request, ModelStore(tmp_path), {}).warnings
    assert any("no tokenizer" in text for text in warnings)


def test_weights_of_several_dtypes_keep_them(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"] = tensors["model.layers.1.mlp.up_proj.weight"].double()
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})

    found = ranks_of(to_meta(base, tmp_path / "target", ranks=2))

    assert found[1]["layers.1.feed_forward.w3.weight"].dtype == torch.float64
    assert found[1]["layers.0.feed_forward.w3.weight"].dtype == torch.float16
