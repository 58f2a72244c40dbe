"""Every block encoding of GGUF: its bytes against ggml's encoders on whole tensors, its values against the model's."""

from pathlib import Path
from typing import Any

import gguf
import libgguf
import numpy as np
import pytest
import torch

import services.checkpoints.gguf_writer as writer
from services.checkpoints.gguf_decoding import decode
from services.checkpoints.gguf_encoding import encode
from services.checkpoints.write_hooks import WriteHooks
from services.errors import NonFiniteTensor, VerificationFailed
from services.merge import Merged, MergeOptions, merge
from services.verify import verify_merge
from tests.contract.gguf_models import field, interleaved, tensors_of, to_gguf
from tests.reference.families import save_tiny_adapter
from tests.reference.huggingface_model import save_llama

BIG: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 1}
"""Rows of whole blocks of 256."""

PARTS = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip

ENCODERS = {"Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"}
"""Encodings that the gguf package encodes."""

RELATIVE_ERROR = {
    "Q2_K": 0.33, "Q3_K": 0.17, "Q4_0": 0.095, "Q4_1": 0.085, "Q4_K": 0.08, "Q5_0": 0.048, "Q5_1": 0.042, "Q5_K": 0.04,
    "Q6_K": 0.02, "Q8_0": 0.006, "IQ4_NL": 0.085, "IQ4_XS": 0.085, "IQ3_S": 0.18,
}  # fmt: skip
"""Largest root mean square of the error of normal values, by that of the values."""


@pytest.mark.parametrize(
    ("dtype", "file_type"),
    [
        ("Q4_0", 2), ("Q4_1", 3), ("Q5_0", 8), ("Q5_1", 9), ("Q2_K", 10), ("Q3_K_M", 12), ("Q4_K_M", 15), ("Q5_K_S", 16),
        ("Q6_K", 18), ("IQ4_NL", 25), ("IQ4_XS", 30), ("IQ3_S", 26),
    ],
)  # fmt: skip
def test_each_tensor_is_ggmls_encoding_of_it(tmp_path: Path, dtype: str, file_type: int) -> None:
    state = save_llama(tmp_path / "base", torch.bfloat16, **BIG).state_dict()
    found = tensors_of(to_gguf(tmp_path / "base", tmp_path / "target", dtype=dtype))
    sources = {f"blk.0.{part}.weight": state[f"model.layers.0.{name}.weight"] for part, name in PARTS.items()}
    sources |= {
        "token_embd.weight": state["model.embed_tokens.weight"],
        "output.weight": state["lm_head.weight"],
    }
    for name, heads in (("blk.0.attn_q.weight", 8), ("blk.0.attn_k.weight", 4)):
        sources[name] = interleaved(sources[name], heads)
    for name, source in sources.items():
        tensor, values = found[name], source.float().numpy()
        encoding = tensor.tensor_type
        independent = gguf.quants.quantize if encoding.name in ENCODERS else libgguf.quantize_rows
        assert np.array_equal(tensor.data, independent(values, encoding)), name
        error = gguf.quants.dequantize(tensor.data, encoding) - values
        assert np.sqrt((error**2).mean() / (values**2).mean()) < RELATIVE_ERROR[encoding.name], name
    assert field(tmp_path / "target", "general.file_type") == file_type


# ---- verification ----


def merged(tmp_path: Path, dtype: str) -> tuple[Merged, MergeOptions]:
    base = save_llama(tmp_path / "base", torch.float16, **BIG)
    adapter = save_tiny_adapter(tmp_path / "adapter", base)
    (tmp_path / "target").mkdir()
    options = MergeOptions(output_format="gguf", dtype=dtype)
    return merge(
        tmp_path / "base", [("adapter", adapter, 1.0)], tmp_path / "target", options=options
    ), options


@pytest.mark.parametrize("dtype", ["Q4_0", "Q5_1", "Q2_K", "Q3_K_M", "Q4_K_M", "Q6_K", "IQ4_XS"])
def test_a_merge_is_checked_against_what_its_encoding_costs(tmp_path: Path, dtype: str) -> None:
    found, options = merged(tmp_path, dtype)
    report = verify_merge(found, options, WriteHooks())
    assert report.passed
    assert 0.15 < report.largest_share_of_tolerance <= 1


@pytest.mark.parametrize("dtype", ["Q4_0", "Q2_K", "Q4_K_M", "IQ4_XS"])
def test_rows_of_another_tensor_do_not_pass(
    tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shifted(name: str, block: torch.Tensor, *more: Any) -> torch.Tensor:
        return encode(name, block.roll(1, 0) if "up_proj" in name else block, *more)

    monkeypatch.setattr(writer, "encode", shifted)
    found, options = merged(tmp_path, dtype)
    with pytest.raises(VerificationFailed, match=r"'model\.layers\.0\.mlp\.up_proj\.weight' differs"):
        verify_merge(found, options, WriteHooks())


def distributions() -> dict[str, np.ndarray[Any, Any]]:
    random = np.random.default_rng(0)
    normal = random.standard_normal((8, 1024))
    uneven = normal.copy()
    uneven[:, 512:] *= 1e-3
    outliers = normal * 1e-3
    outliers[:, ::97] *= 1e4
    return {
        "normal": normal, "heavy": random.standard_t(2, (8, 1024)), "uniform": random.uniform(-1, 1, (8, 1024)),
        "positive": random.uniform(0, 1, (8, 1024)), "uneven": uneven, "outliers": outliers, "constant": np.full((8, 1024), 0.37),
        "tiny": normal * 1e-6, "zero": np.zeros((8, 1024)),
        "logarithmic": np.exp(2 * random.standard_normal((8, 1024))) * np.sign(normal),
    }  # fmt: skip


ENCODINGS = [
    "Q4_0",
    "Q4_1",
    "Q5_0",
    "Q5_1",
    "Q8_0",
    "Q2_K",
    "Q3_K",
    "Q4_K",
    "Q5_K",
    "Q6_K",
    "IQ4_NL",
    "IQ4_XS",
    "IQ3_S",
]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_errors_are_within_their_bound_and_other_values_are_not(encoding: str) -> None:
    found = {}
    for name, values in distributions().items():
        rows = torch.from_numpy(values.astype(np.float32))
        decoded, bound = decode(encode(name, rows, encoding), encoding)
        assert float(((decoded - rows.double()).abs() / bound).max()) <= 1, name
        found[name] = (decoded, bound)
    decoded, bound = found["normal"]
    other = torch.from_numpy(np.random.default_rng(1).standard_normal((8, 1024)))
    assert float(((decoded - other).abs() > bound).double().mean()) > 0.02


# ---- values that cannot be encoded ----


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e30])
def test_values_that_an_encoder_would_take_silently_are_refused(encoding: str, value: float) -> None:
    rows = torch.ones(2, 256)
    rows[1, 7] = value
    with pytest.raises(NonFiniteTensor, match=f"'some.weight' holds .*; {encoding} encodes values up to"):
        encode("some.weight", rows, encoding)


def test_bfloat16_beyond_float16_is_refused_where_rows_fall_back_to_float16() -> None:
    with pytest.raises(NonFiniteTensor, match="some"):
        encode("some.weight", torch.full((2, 40), 1e6, dtype=torch.bfloat16), "F16")
