"""Importance matrices in llama-imatrix's files: taken as llama-quantize takes them, or refused with what is wrong."""

import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import libgguf
import numpy as np
import pytest
import torch
from pydantic import ValidationError

from services.checkpoints import gguf_writer
from services.checkpoints.gguf_encoding import encode
from services.errors import GraftwerkError, VerificationFailed
from services.kinds.convert import ConvertRequest
from services.kinds.merge import MergeRequest
from tests.contract.gguf_models import field, tensors_of
from tests.job_context import job_context
from tests.reference.families import save_tiny_adapter
from tests.reference.huggingface_model import save_llama
from worker.models import convert as convert_job
from worker.models import merge as merge_job

BIG: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 1}
"""Rows of whole blocks of 256."""

WIDTHS = {
    f"blk.0.{part}.weight": 512 if part == "ffn_down" else 256
    for part in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
}

TOKENS = 1024

Sums = dict[str, np.ndarray[Any, Any]]


def sums_of(widths: Mapping[str, int] = WIDTHS) -> Sums:
    """Sums of squares over several orders of magnitude, by the matrix's name."""
    random = np.random.default_rng(7)
    return {
        name: (TOKENS * np.exp(2 * random.standard_normal(width))).astype(np.float32)
        for name, width in widths.items()
    }


def put_imatrix(
    root: Path,
    sums: Sums,
    *,
    name: str = "m.gguf",
    leave_out: str = "",
    metadata: bool = True,
    **changes: Any,
) -> None:
    """Writes a file as llama-imatrix does; `changes` are the metadata's and the counts."""
    values = {"kind": "imatrix", "counts": np.full((1, 1), TOKENS, np.float32), **changes}
    (root / "incoming").mkdir(exist_ok=True)
    writer = gguf.GGUFWriter(root / "incoming" / name, arch="")
    writer.add_string("general.type", values["kind"])
    if metadata:
        writer.add_array("imatrix.datasets", ["wiki.train.raw"])
        writer.add_uint32("imatrix.chunk_count", 2)
        writer.add_uint32("imatrix.chunk_size", 512)
    for matrix, row in sums.items():
        tensors = {
            ".in_sum2": row[None],
            ".counts": values["counts"],
            ".in_sum": np.zeros_like(row[None]),
            ".stats": row[None, :8],
        }
        for end, tensor in tensors.items():
            if matrix + end != leave_out:
                writer.add_tensor(matrix + end, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def request_of(dtype: str = "q4_k_m", **options: Any) -> ConvertRequest:
    values = {"kind": "convert", "source": "base", "target": "new", "output_format": "gguf", "dtype": dtype}
    return ConvertRequest.model_validate({**values, "imatrix": {"file": "incoming/m.gguf"}, **options})


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    folder = tmp_path_factory.mktemp("base") / "base"
    return folder, save_llama(folder, torch.float16, **BIG).state_dict()


@pytest.fixture
def root(tmp_path: Path, state: tuple[Path, dict[str, torch.Tensor]]) -> Path:
    (tmp_path / "base").symlink_to(state[0], target_is_directory=True)
    return tmp_path


NAMES = {
    "ffn_down": "mlp.down_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_up": "mlp.up_proj",
}
"""Matrices whose rows keep their order."""


@pytest.mark.parametrize(
    "dtype",
    ["q4_0", "q5_1", "q2_k_s", "q3_k_m", "q4_k_m", "q6_k", "iq4_xs", "iq3_xxs", "iq2_xs", "iq1_s", "iq1_m"],
)
def test_each_matrix_is_ggmls_encoding_with_the_means_of_the_file(
    root: Path, state: tuple[Path, dict[str, torch.Tensor]], dtype: str
) -> None:
    sums = sums_of()
    put_imatrix(root, sums)
    result = convert_job.run(request_of(dtype), job_context(root))
    found = tensors_of(root / "new")
    for part, module in NAMES.items():
        name = f"blk.0.{part}.weight"
        values = state[1][f"model.layers.0.{module}.weight"].float().numpy()
        expected = libgguf.quantize_rows(values, found[name].tensor_type, sums[name] / np.float32(TOKENS))
        assert np.array_equal(found[name].data, expected), name
    head = state[1]["lm_head.weight"].float().numpy()
    plain = libgguf.quantize_rows(head, found["output.weight"].tensor_type)
    assert np.array_equal(found["output.weight"].data, plain)
    assert result.imatrix is not None
    assert result.imatrix.model_dump() == {
        "file": "incoming/m.gguf", "text_file": None, "datasets": ["wiki.train.raw"], "entries": 7, "chunks": 2,
        "chunk_size": 512, "tokens": TOKENS,
    }  # fmt: skip
    written = {key: field(root / "new", f"quantize.imatrix.{key}") for key in ("file", "dataset")}
    assert written == {"file": "incoming/m.gguf", "dataset": "wiki.train.raw"}


def merge_request(root: Path, dtype: str) -> MergeRequest:
    base = save_llama(root / "own", torch.float16, **BIG)
    save_tiny_adapter(root / "adapter", base)
    put_imatrix(root, sums_of())
    request = {
        "kind": "merge",
        "base": "own",
        "adapters": ["adapter"],
        "target": "new",
        "output_format": "gguf",
    }
    return MergeRequest.model_validate({**request, "dtype": dtype, "imatrix": {"file": "incoming/m.gguf"}})


@pytest.mark.parametrize("dtype", ["q4_0", "q2_k", "q4_k_m", "iq4_xs", "iq2_xs"])
def test_a_merge_with_an_importance_matrix_passes_its_verification(root: Path, dtype: str) -> None:
    result = merge_job.run(merge_request(root, dtype), job_context(root))
    assert result.verification is not None
    assert 0.01 < (result.verification.largest_share_of_tolerance or 0) < 0.8


def test_rows_of_another_tensor_do_not_pass(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def shifted(name: str, block: torch.Tensor, *more: Any) -> torch.Tensor:
        return encode(name, block.roll(1, 0) if "up_proj" in name else block, *more)

    monkeypatch.setattr(gguf_writer, "encode", shifted)
    with pytest.raises(VerificationFailed, match=r"'model\.layers\.0\.mlp\.up_proj\.weight' differs"):
        merge_job.run(merge_request(root, "q4_k_m"), job_context(root))


def test_a_renamed_file_is_the_same_and_a_changed_one_is_not(root: Path) -> None:
    put_imatrix(root, sums_of())
    convert_job.run(request_of(), job_context(root))
    (root / "incoming" / "m.gguf").rename(root / "incoming" / "n.gguf")
    same = convert_job.run(request_of(target="same", imatrix={"file": "incoming/n.gguf"}), job_context(root))
    assert same.same_as == "new"
    sums = sums_of()
    sums["blk.0.ffn_down.weight"][0] *= 100
    put_imatrix(root, sums)
    other = convert_job.run(request_of(target="other"), job_context(root))
    assert other.same_as is None
    assert other.tensor_digest != same.tensor_digest


# ---- refusals ----


def with_value(value: float, columns: slice = slice(3, 4)) -> Sums:
    sums = sums_of()
    sums["blk.0.ffn_up.weight"][columns] = value
    return sums


REFUSED: dict[str, tuple[Sums, dict[str, Any], str]] = {
    "NaN": (with_value(float("nan")), {}, "is nan in column 3"),
    "infinity": (with_value(float("inf")), {}, "is inf in column 3"),
    "negative": (with_value(-1.0), {}, r"is -0\.000976\d* in column 3"),
    "zero": (with_value(0.0, slice(None)), {}, "is zero in columns 0 to 15"),
    "a part of zeros": (with_value(0.0, slice(32, 48)), {}, "is zero in columns 32 to 47"),
    "no data": (sums_of(), {"counts": np.zeros((1, 1), np.float32)}, "has the count 0.0"),
    "a count of NaN": (sums_of(), {"counts": np.full((1, 1), np.nan, np.float32)}, "has the count nan"),
    "experts": (sums_of(), {"counts": np.ones((2, 1), np.float32)}, "has 2 counts"),
    "missing": (sums_of({k: v for k, v in WIDTHS.items() if "down" not in k}), {}, "no importance of 1 matrices"),
    "extra": (sums_of(WIDTHS | {"blk.1.ffn_up.weight": 256}), {}, "'blk.1.ffn_up.weight', which is not a matrix"),
    "width": (sums_of(WIDTHS | {"blk.0.ffn_up.weight": 512}), {}, "has 512 columns of 'blk.0.ffn_up.weight'"),
    "no counts": (sums_of(), {"leave_out": "blk.0.ffn_up.weight.counts"}, "without 'blk.0.ffn_up.weight.counts'"),
    "no sums": (sums_of(), {"leave_out": "blk.0.ffn_up.weight.in_sum2"}, "without 'blk.0.ffn_up.weight.in_sum2'"),
    "no matrices": ({}, {}, "holds no importance"),
    "another kind": (sums_of(), {"kind": "model"}, "general.type 'model'"),
    "no metadata": (sums_of(), {"metadata": False}, "None as imatrix.datasets"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_that_is_not_the_models_is_refused(root: Path, case: str) -> None:
    sums, options, message = REFUSED[case]
    put_imatrix(root, sums, **options)
    with pytest.raises(GraftwerkError) as error:
        convert_job.run(request_of(), job_context(root))
    assert re.search(message, error.value.message)
    assert error.value.hint
    assert not (root / "new").exists()


def test_the_old_format_is_refused_by_its_name(root: Path) -> None:
    (root / "incoming").mkdir()
    (root / "incoming" / "m.gguf").write_bytes(struct.pack("<ii", 7, 19) + b"blk.0.ffn_up.weight")
    with pytest.raises(GraftwerkError, match=r"old format of importance matrices \(\.dat\)") as error:
        convert_job.run(request_of(), job_context(root))
    assert "llama-imatrix --in-file" in error.value.hint


def test_a_truncated_file_is_refused(root: Path) -> None:
    put_imatrix(root, sums_of())
    path = root / "incoming" / "m.gguf"
    path.write_bytes(path.read_bytes()[:-4000])
    with pytest.raises(GraftwerkError, match=r"m\.gguf has \d+ bytes"):
        convert_job.run(request_of(), job_context(root))


def test_a_mix_that_needs_a_matrix_is_refused_without_one(root: Path) -> None:
    with pytest.raises(GraftwerkError, match="needs an importance matrix; the request has none"):
        convert_job.run(request_of("iq2_xs", imatrix=None), job_context(root))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"imatrix": {}}, "exactly one of text_file and file"),
        ({"imatrix": {"file": "incoming/a", "text_file": "incoming/b"}}, "exactly one of text_file and file"),
        ({"dtype": "float16"}, "imatrix applies to the types"),
        ({"dtype": "q8_0"}, "imatrix applies to the types"),
        ({"base": "base"}, "imatrix applies to models"),
    ],
)
def test_requests_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        request_of(**options)
