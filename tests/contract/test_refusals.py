"""Refusals of a request and of the volume, by preflight and again by the worker, which leaves nothing."""

import errno
import json
import shutil
from typing import Any

import pytest
from pydantic import ValidationError

from services.errors import (
    DiskFull,
    InvalidRequest,
    ModelExists,
    ModelNotFound,
    NonFiniteTensor,
    UnsupportedOption,
    WrongModelKind,
)
from services.kinds.convert import ConvertRequest
from services.kinds.merge import MergeRequest
from services.models.store import ModelStore
from services.preflight import preflight
from tests.contract.refused_requests import assert_nothing_left, assert_refused, content, merge_of, store
from tests.job_context import job_context
from tests.reference.tensor_files import write_base
from worker.models import merge as merge_job

__all__ = ["store"]  # fixture


def test_the_same_adapter_twice_is_refused(store: ModelStore) -> None:
    assert_refused(store, merge_of("fits", "fits"), InvalidRequest, "fits, fits", "use its scale instead")


def test_the_same_weights_under_two_names_are_refused(store: ModelStore) -> None:
    shutil.copytree(store.root / "fits", store.root / "copy")
    assert_refused(store, merge_of("fits", "copy"), InvalidRequest, "fits and copy hold the same weights")


def test_an_adapter_as_base_is_refused(store: ModelStore) -> None:
    assert_refused(
        store,
        merge_of("fits", base="fits"),
        WrongModelKind,
        "'fits' is of kind 'adapter'; a base model (original or huggingface) is needed",
    )


def test_a_base_as_adapter_is_refused(store: ModelStore) -> None:
    write_base(store.root / "other")
    assert_refused(
        store, merge_of("other"), WrongModelKind, "'other' is of kind 'huggingface'; an adapter is needed"
    )


def test_an_adapter_as_source_of_a_conversion_is_refused(store: ModelStore) -> None:
    request = ConvertRequest(kind="convert", source="fits", target="new")
    assert_refused(
        store,
        request,
        UnsupportedOption,
        "'fits' is an adapter; adapters are converted to GGUF only, and with their base",
    )


def test_a_model_that_is_not_there_is_refused_with_those_that_are(store: ModelStore) -> None:
    assert_refused(store, merge_of("missing"), ModelNotFound, "'missing'", "there are: base, fits")


@pytest.mark.parametrize("target", ["base", "BASE", "fits", "Fits"])
def test_a_target_that_is_an_input_is_refused(target: str) -> None:
    with pytest.raises(ValidationError, match=f"target '{target}' is one of the inputs"):
        MergeRequest(kind="merge", base="base", adapters=["fits"], target=target)


def test_a_target_that_exists_in_another_letter_case_is_refused(store: ModelStore) -> None:
    write_base(store.root / "New")
    before = content(store)
    for door in (
        lambda: preflight(merge_of("fits"), store, {}),
        lambda: merge_job.run(merge_of("fits"), job_context(store.root)),
    ):
        with pytest.raises(ModelExists, match=r"'new' exists already \(ignoring case\)"):
            door()
    assert content(store) == before


def test_ranks_that_do_not_divide_the_heads_are_refused(store: ModelStore) -> None:
    request = merge_of("fits", output_format="meta", ranks=3)
    assert_refused(store, request, UnsupportedOption, "8 attention heads, which 3 ranks do not divide")


def test_an_encoding_whose_blocks_do_not_fit_the_rows_is_refused(store: ModelStore) -> None:
    request = merge_of("fits", output_format="gguf", dtype="q8_0")
    assert_refused(store, request, UnsupportedOption, "rows of 48 elements; Q8_0 encodes blocks of 32")


def test_a_full_disk_is_refused_with_both_sizes(store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """91,248 elements of two bytes, and 64 MiB to spare."""
    monkeypatch.setattr(ModelStore, "free_bytes", lambda self: 1000)
    assert_refused(store, merge_of("fits"), DiskFull, "needs 67291360 bytes", "1000 are free")
    monkeypatch.setattr(ModelStore, "free_bytes", lambda self: 67291360)
    assert preflight(merge_of("fits"), store, {}).disk_needed_bytes == 67291360


def test_a_disk_that_fills_up_meanwhile_leaves_nothing(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = content(store)
    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(DiskFull, match="no space for"):
        merge_job.run(merge_of("fits"), job_context(store.root))
    assert_nothing_left(store, before)


def test_a_base_of_values_that_are_no_numbers_leaves_nothing(store: ModelStore) -> None:
    path = store.root / "base" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-2:] = b"\x00\x7e"  # a NaN of float16 as the last element of lm_head
    path.write_bytes(data)
    before = content(store)
    with pytest.raises(NonFiniteTensor, match=r"'lm_head\.weight' holds 1 values"):
        merge_job.run(merge_of("fits"), job_context(store.root))
    assert_nothing_left(store, before)


def manifest_of(store: ModelStore) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((store.root / "new" / "manifest.json").read_text())
    return manifest


def test_a_merge_that_is_accepted_is_published_with_its_lineage(store: ModelStore) -> None:
    result = merge_job.run(merge_of("fits", metadata={"for": "test"}), job_context(store.root)).model_dump(
        exclude_unset=True
    )
    assert store.names() == ["base", "fits", "new"]
    figures = {"adapter": "fits", "scale": 1.0, "tensors": 12, "merged": 6, "replaced": 0}
    assert {key: result["adapters"][0][key] for key in figures} == figures
    assert result["device"] == manifest_of(store)["result"]["device"] == "cpu"
    assert result["adapters"][0]["rows_added"] == 0
    assert result["adapters"][0]["change_norms"] == {"q_proj": 0.0, "v_proj": 0.0}
    assert any(warning.startswith("Adapter fits changes nothing") for warning in result["warnings"])
    manifest = manifest_of(store)
    assert manifest["operation"] == "merge"
    assert [(entry["role"], entry["name"]) for entry in manifest["inputs"]] == [
        ("base", "base"), ("adapter", "fits"),
    ]  # fmt: skip
    assert len(manifest["tensors"]) == 30
