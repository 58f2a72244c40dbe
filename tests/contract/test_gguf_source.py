"""GGUF read: models written by the `gguf` package and by our own writer become the Hugging Face models that they were."""

import json
from pathlib import Path
from typing import Any, cast

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from services.architectures.checkpoint_reader import read_checkpoint
from services.architectures.gguf_layout import DECODED
from services.checkpoints.blocks import source_blocks
from services.checkpoints.tensor_reader import TensorReader
from services.convert import ConvertOptions, convert
from services.files.gguf_header import read_gguf_header
from services.kinds.convert import ConvertRequest
from services.models.manifest import read_manifest
from services.models.store import ModelStore
from services.preflight import preflight
from tests.job_context import job_context
from tests.reference.gguf_models import save_gguf, sentencepiece_tokens
from tests.reference.huggingface_model import save_llama
from worker.models import convert as convert_job

TOKENS = [1, 57, 100, 3, 99, 12, 76]
WIDE: dict[str, Any] = {"hidden_size": 96, "intermediate_size": 160}
"""Rows of whole blocks of 32: head_dim 12."""

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def converted(source: Path, target: Path, **options: Any) -> dict[str, torch.Tensor]:
    target.mkdir()
    convert(source, target, ConvertOptions(**options))
    return load_file(target / "model.safetensors")


def gguf_of(
    tmp_path: Path, dtype: torch.dtype = torch.float32, *, sizes: Any = None, **options: Any
) -> tuple[Any, Any]:
    """A random model, saved as GGUF in the folder `source`; and what its file holds."""
    model = save_llama(tmp_path / "original", dtype, **(WIDE if sizes is None else sizes))
    (tmp_path / "source").mkdir()
    tokens = sentencepiece_tokens(tmp_path / "original" / "tokenizer.model")
    return model, save_gguf(tmp_path / "source" / "anything.gguf", model, tokens, **options)


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return cast(torch.Tensor, model(torch.tensor([TOKENS])).logits[0].float())


def loaded(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


# ---- the gguf package's file --------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_every_tensor_is_what_the_encoding_leaves(tmp_path: Path, encoding: str) -> None:
    _, held = gguf_of(tmp_path, encoding=encoding)
    exact = converted(tmp_path / "source", tmp_path / "exact", dtype="F32")
    kept = converted(tmp_path / "source", tmp_path / "kept")

    assert set(exact) == set(kept) == set(held)
    dtype = DTYPES.get(encoding, torch.float16)
    for name, values in held.items():
        assert torch.equal(exact[name], values), name
        assert torch.equal(kept[name], values.to(dtype)), name


@pytest.mark.parametrize("tied", [False, True])
def test_the_model_computes_the_same(tmp_path: Path, tied: bool) -> None:
    model, _ = gguf_of(
        tmp_path, encoding="F32", sizes={**WIDE, "tie_word_embeddings": tied, "attention_bias": True}
    )
    converted(tmp_path / "source", tmp_path / "target")
    found = loaded(tmp_path / "target")
    assert torch.allclose(logits_of(found), logits_of(model), rtol=1e-5, atol=1e-5)
    assert found.config.tie_word_embeddings is tied
    assert ("lm_head.weight" in load_file(tmp_path / "target" / "model.safetensors")) is not tied


def test_the_configuration_is_the_models(tmp_path: Path) -> None:
    model, _ = gguf_of(tmp_path, sizes={**WIDE, "rope_theta": 250000.0})
    converted(tmp_path / "source", tmp_path / "target")
    found = loaded(tmp_path / "target").config.to_dict()
    expected = model.config.to_dict()
    differ = {key for key in expected if found.get(key) != expected[key]}
    assert differ <= {"dtype", "_name_or_path", "transformers_version", "pad_token_id", "architectures"}, (
        differ
    )
    written = json.loads((tmp_path / "target" / "config.json").read_text())
    assert written["rms_norm_eps"] == 1e-5, "the decimal, not the float32 next to it"


def test_blocks_of_every_encoding_are_decoded_as_the_package_decodes_them(tmp_path: Path) -> None:
    """Random bytes, one encoding a layer, in a model whose rows are whole blocks of 256."""
    model = save_llama(
        tmp_path / "original", torch.float16, hidden_size=256, intermediate_size=32, num_hidden_layers=len(DECODED),
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    raw = {f"blk.{layer}.attn_k.weight": random_blocks(encoding) for layer, encoding in enumerate(DECODED)}
    (tmp_path / "source").mkdir()
    tokens = sentencepiece_tokens(tmp_path / "original" / "tokenizer.model")
    save_gguf(tmp_path / "source" / "model.gguf", model, tokens, leave_out=tuple(raw), raw=raw)

    tensors = read_checkpoint(tmp_path / "source").tensors
    for layer, (data, kind) in enumerate(raw.values()):
        source = tensors[f"model.layers.{layer}.self_attn.k_proj.weight"]
        with TensorReader() as reader:
            found, whole = torch.cat(list(source_blocks(reader, source))), reader.load(source)
        expected = torch.from_numpy(gguf.quants.dequantize(data, kind)).view(2, 32, 2, 256)
        assert torch.equal(found, expected.transpose(1, 2).reshape(128, 256)), kind.name
        assert torch.equal(whole, found), kind.name


def random_blocks(encoding: str) -> tuple[Any, gguf.GGMLQuantizationType]:
    """A matrix of 128 rows of 256 values; bytes below 64 make no scale that is not finite."""
    kind = gguf.GGMLQuantizationType[encoding]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    data = np.random.default_rng(kind).integers(0, 64, (128, 256 // block * size), dtype=np.uint8)
    return data, kind


# ---- our own file -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_a_model_comes_back_from_our_own_file_bit_for_bit(tmp_path: Path, dtype: str) -> None:
    model = save_llama(tmp_path / "original", DTYPES[dtype])
    (tmp_path / "gguf").mkdir()
    convert(tmp_path / "original", tmp_path / "gguf", ConvertOptions(output_format="gguf"))
    found = converted(tmp_path / "gguf", tmp_path / "target")
    assert {name: found[name].dtype for name in found} == dict.fromkeys(model.state_dict(), DTYPES[dtype])
    for name, expected in model.state_dict().items():
        assert torch.equal(found[name], expected), name


# ---- the job ------------------------------------------------------------------------------------------

ORIGIN: dict[str, Any] = {
    "general.name": "Little Llama", "general.license": "apache-2.0", "general.base_model.count": 1,
    "general.base_model.0.name": "Llama", "general.base_model.0.repo_url": "https://example.org/llama",
}  # fmt: skip


def test_a_job_records_where_the_model_comes_from(tmp_path: Path) -> None:
    _, held = gguf_of(tmp_path, encoding="Q8_0", metadata=ORIGIN)
    request = ConvertRequest(kind="convert", source="source", target="made")
    plan = preflight(request, ModelStore(tmp_path), ())
    result = convert_job.run(request, job_context(tmp_path))

    manifest = read_manifest(tmp_path / "made")
    assert manifest is not None
    assert manifest.origin == {
        "name": "Little Llama", "license": "apache-2.0",
        "base_models": [{"name": "Llama", "repo_url": "https://example.org/llama"}],
    }  # fmt: skip
    stored = read_gguf_header(tmp_path / "source" / "anything.gguf").tensors.values()
    assert result.bytes_read == sum(tensor.size_bytes for tensor in stored) == plan.reads[0].size_bytes
    assert result.bytes_written == 2 * sum(values.numel() for values in held.values()) == plan.output_bytes
    assert (result.model.kind, result.model.dtypes, result.warnings) == ("huggingface", ["float16"], [])
    assert "\nlicense: apache-2.0\n" in (tmp_path / "made" / "README.md").read_text()
    generation = json.loads((tmp_path / "made" / "generation_config.json").read_text())
    assert (generation["bos_token_id"], generation["eos_token_id"]) == (1, 2)


def test_a_sentencepiece_model_becomes_metas_layout_and_the_same_again(tmp_path: Path) -> None:
    _, held = gguf_of(tmp_path, encoding="F16")
    (tmp_path / "meta").mkdir()
    convert(
        tmp_path / "source", tmp_path / "meta", ConvertOptions(output_format="meta", dtype="F32", ranks=2)
    )
    found = converted(tmp_path / "meta", tmp_path / "target")
    assert all(torch.equal(found[name], held[name]) for name in held)


# ---- rotary scaling -----------------------------------------------------------------------------------

LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama_3s_frequency_factors_become_its_scaling(tmp_path: Path, factor: float) -> None:
    scaling = {**LLAMA3, "factor": factor}
    model = save_llama(
        tmp_path / "original",
        torch.float32,
        **WIDE,
        rope_theta=500000.0,
        rope_scaling={**scaling},
        max_position_embeddings=16384,
    )
    (tmp_path / "gguf").mkdir()
    convert(tmp_path / "original", tmp_path / "gguf", ConvertOptions(output_format="gguf"))
    checkpoint = read_checkpoint(tmp_path / "gguf")
    converted(tmp_path / "gguf", tmp_path / "target")
    assert (checkpoint.dropped, checkpoint.config.rope_scaling) == (("rope_freqs.weight",), scaling)
    assert torch.equal(logits_of(loaded(tmp_path / "target")), logits_of(model))


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 2.5}, {"rope_type": "linear", "factor": 2.5}),
        (
            {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 48},
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 48},
        ),
        ({"rope.scaling.type": "none"}, None),
    ],
)  # fmt: skip
def test_scalings_in_the_metadata_are_taken(tmp_path: Path, metadata: Any, expected: Any) -> None:
    gguf_of(tmp_path, metadata=metadata)
    assert read_checkpoint(tmp_path / "source").config.rope_scaling == expected


# ---- split files --------------------------------------------------------------------------------------


def test_a_split_model_is_read_from_all_its_files(tmp_path: Path) -> None:
    model, held = gguf_of(tmp_path)
    whole = tmp_path / "source" / "anything.gguf"
    split(whole, tmp_path / "parts", model.config.num_hidden_layers)
    found = converted(tmp_path / "parts", tmp_path / "target", dtype="F32")
    assert set(found) == set(held)
    assert all(torch.equal(found[name], held[name]) for name in held)


def split(path: Path, target: Path, layers: int) -> None:
    """gguf-split's result: the metadata and the first tensors in the first file, the others in the second."""
    target.mkdir()
    reader = gguf.GGUFReader(path)
    tensors = [reader.tensors[: 5 * layers], reader.tensors[5 * layers :]]
    for number, part in enumerate(tensors):
        writer = gguf.GGUFWriter(target / f"m-0000{number + 1}-of-00002.gguf", "llama")
        if number == 0:
            for key, field in reader.fields.items():
                if key not in ("general.architecture", "GGUF.version", "GGUF.tensor_count", "GGUF.kv_count"):
                    sub = field.types[1] if len(field.types) > 1 else None
                    writer.add_key_value(key, field.contents(), field.types[0], sub)
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", 2)
        writer.add_int32("split.tensors.count", len(reader.tensors))
        for tensor in part:
            writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
