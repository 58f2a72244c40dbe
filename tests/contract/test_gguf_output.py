"""GGUF written: read back by llama.cpp's own package and by transformers, against the model that went in."""

import json
import math
import stat
from pathlib import Path
from typing import Any, cast

import gguf
import numpy as np
import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from services.architectures.checkpoint_reader import read_checkpoint
from services.checkpoints.gguf_metadata import rope_factors
from services.checkpoints.write_hooks import WriteHooks
from services.convert import ConvertOptions, convert
from services.errors import (
    GraftwerkError,
    JobCanceled,
    NonFiniteTensor,
    UnsupportedFormat,
    UnsupportedOption,
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
from tests.job_context import job_context
from tests.miniature import MINIATURE, unpack_adapters
from tests.reference.huggingface_model import save_llama
from tests.reference.make_original import SMALL, random_state, save_original, split_ranks
from tests.reference.peft_merge import make_adapter
from tests.reference.tokenizer_files import piece_names, sentencepiece_file
from worker.models import convert as convert_job
from worker.models import merge as merge_job

TOKENS = [1, 57, 100, 3, 99, 12, 76]
WIDE: dict[str, Any] = {"hidden_size": 96, "intermediate_size": 160}
"""Rows of whole blocks of 32: head_dim 12."""

pytestmark = [
    # transformers copies from arrays that gguf maps read-only; nothing writes to them.
    pytest.mark.filterwarnings("ignore:The given NumPy array is not writable:UserWarning"),
]


def to_gguf(source: Path, target: Path, **options: Any) -> Path:
    target.mkdir()
    convert(source, target, ConvertOptions(output_format="gguf", **options))
    return target


def tensors_of(folder: Path) -> dict[str, gguf.ReaderTensor]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(folder / "model.gguf").tensors}


def field(folder: Path, key: str) -> Any:
    found = gguf.GGUFReader(folder / "model.gguf").get_field(key)
    return None if found is None else found.contents()


def logits_of(model: Any, tokens: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return cast(torch.Tensor, model(torch.tensor([tokens])).logits[0].float())


def loaded(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, gguf_file="model.gguf", dtype=torch.float32).eval()


def relative_difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """llama.cpp's permute (convert_hf_to_gguf.py, LlamaModel.permute), written out row by row."""
    size = weight.shape[0] // heads
    order = [
        head * size + part * (size // 2) + i
        for head in range(heads)
        for i in range(size // 2)
        for part in (0, 1)
    ]
    return weight[order]


# ---- computes the same --------------------------------------------------------------------------------


def rounded(model: LlamaForCausalLM, dtype: str | None) -> LlamaForCausalLM:
    """The model with its matrices rounded to an encoding by ggml's own arithmetic."""
    encoding = gguf.GGMLQuantizationType[dtype or "F32"]
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                encoded = gguf.quants.quantize(parameter.numpy(), encoding)
                parameter.copy_(torch.from_numpy(gguf.quants.dequantize(encoded, encoding)))
    return model


@pytest.mark.parametrize(
    ("dtype", "cost"), [(None, 1e-6), ("F32", 1e-6), ("F16", 5e-3), ("BF16", 5e-2), ("Q8_0", 0.1)]
)
def test_transformers_computes_what_the_encoding_leaves(
    tmp_path: Path, dtype: str | None, cost: float
) -> None:
    model = save_llama(tmp_path / "base", torch.float32, **WIDE)
    exact = logits_of(model, TOKENS)

    found = logits_of(loaded(to_gguf(tmp_path / "base", tmp_path / "target", dtype=dtype)), TOKENS)

    assert relative_difference(found, logits_of(rounded(model, dtype), TOKENS)) < 1e-5
    assert relative_difference(found, exact) < cost


def test_the_comparison_sees_a_missing_permutation(tmp_path: Path) -> None:
    model = save_llama(tmp_path / "base", torch.float32, **WIDE)
    before = logits_of(model, TOKENS)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.copy_(interleaved(layer.self_attn.q_proj.weight.clone(), 8))
    assert relative_difference(logits_of(model, TOKENS), before) > 0.1


@pytest.mark.parametrize(("dtype", "bound"), [("F32", 1e-5), ("F16", 1e-4), ("Q8_0", 5e-2)])
def test_the_miniature_computes_the_same_from_the_file(tmp_path: Path, dtype: str, bound: float) -> None:
    """Its tensors are float16, so that encoding is exact."""
    (tmp_path / "hf").mkdir()
    convert(MINIATURE / "llama", tmp_path / "hf")
    expected = LlamaForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32).eval()

    target = to_gguf(MINIATURE / "llama", tmp_path / "target", dtype=dtype)

    assert relative_difference(logits_of(loaded(target), TOKENS), logits_of(expected, TOKENS)) < bound


def test_grouped_heads_of_an_original_checkpoint_over_ranks_compute_the_same(tmp_path: Path) -> None:
    source = save_original(tmp_path / "source", split_ranks(random_state(SMALL), 4), SMALL.params)
    (tmp_path / "hf").mkdir()
    convert(source, tmp_path / "hf")
    expected = LlamaForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32).eval()
    target = to_gguf(source, tmp_path / "target")
    assert relative_difference(logits_of(loaded(target), TOKENS), logits_of(expected, TOKENS)) < 1e-5


# ---- holds the same -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_every_tensor_is_exactly_the_models(tmp_path: Path, dtype: str) -> None:
    torch_dtype = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[dtype]
    model = save_llama(tmp_path / "base", torch_dtype)

    found = tensors_of(to_gguf(tmp_path / "base", tmp_path / "target"))

    state = model.state_dict()
    expected = {
        "token_embd.weight": state["model.embed_tokens.weight"], "output.weight": state["lm_head.weight"],
        "output_norm.weight": state["model.norm.weight"],
    }  # fmt: skip
    for layer in range(3):
        of_layer = {
            "attn_q": interleaved(state[f"model.layers.{layer}.self_attn.q_proj.weight"], 8),
            "attn_k": interleaved(state[f"model.layers.{layer}.self_attn.k_proj.weight"], 4),
            "attn_v": state[f"model.layers.{layer}.self_attn.v_proj.weight"],
            "attn_output": state[f"model.layers.{layer}.self_attn.o_proj.weight"],
            "ffn_gate": state[f"model.layers.{layer}.mlp.gate_proj.weight"],
            "ffn_up": state[f"model.layers.{layer}.mlp.up_proj.weight"],
            "ffn_down": state[f"model.layers.{layer}.mlp.down_proj.weight"],
            "attn_norm": state[f"model.layers.{layer}.input_layernorm.weight"],
            "ffn_norm": state[f"model.layers.{layer}.post_attention_layernorm.weight"],
        }  # fmt: skip
        expected |= {f"blk.{layer}.{name}.weight": tensor for name, tensor in of_layer.items()}
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        vector = tensor.ndim == 1
        assert found[name].tensor_type.name == ("F32" if vector else dtype), name
        values = gguf.quants.dequantize(found[name].data, found[name].tensor_type)
        assert np.array_equal(values, tensor.float().numpy()), name


def test_q8_0_is_ggmls_quantisation_of_the_interleaved_rows(tmp_path: Path) -> None:
    model = save_llama(tmp_path / "base", torch.float16, **WIDE)
    found = tensors_of(to_gguf(tmp_path / "base", tmp_path / "target", dtype="Q8_0"))
    rows = interleaved(model.state_dict()["model.layers.2.self_attn.k_proj.weight"].float(), 4)
    expected = gguf.quants.quantize(rows.numpy(), gguf.GGMLQuantizationType.Q8_0)
    assert found["blk.2.attn_k.weight"].tensor_type.name == "Q8_0"
    assert np.array_equal(found["blk.2.attn_k.weight"].data, expected)
    assert {t.tensor_type.name for n, t in found.items() if "norm" in n} == {"F32"}


def test_attention_biases_are_interleaved_as_their_rows_are(tmp_path: Path) -> None:
    model = save_llama(tmp_path / "base", torch.float32, attention_bias=True, mlp_bias=True)
    found = tensors_of(to_gguf(tmp_path / "base", tmp_path / "target"))
    state = model.state_dict()
    assert np.array_equal(
        found["blk.1.attn_q.bias"].data,
        interleaved(state["model.layers.1.self_attn.q_proj.bias"], 8).numpy(),
    )
    assert np.array_equal(found["blk.1.ffn_up.bias"].data, state["model.layers.1.mlp.up_proj.bias"].numpy())


def test_tied_embeddings_have_no_output_tensor(tmp_path: Path) -> None:
    save_llama(tmp_path / "base", tie_word_embeddings=True)
    assert "output.weight" not in tensors_of(to_gguf(tmp_path / "base", tmp_path / "target"))


# ---- says the same ------------------------------------------------------------------------------------


def test_the_metadata_are_llama_cpps(tmp_path: Path) -> None:
    save_llama(tmp_path / "base", rope_theta=20000.0)
    target = to_gguf(tmp_path / "base", tmp_path / "target")
    expected = {
        "general.architecture": "llama", "general.type": "model", "general.file_type": 1,
        "llama.context_length": 64, "llama.embedding_length": 48, "llama.block_count": 3,
        "llama.feed_forward_length": 140, "llama.attention.head_count": 8, "llama.attention.head_count_kv": 4,
        "llama.rope.dimension_count": 6, "llama.vocab_size": 101, "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": False,
    }  # fmt: skip
    assert {key: field(target, key) for key in expected} == expected
    assert field(target, "llama.attention.layer_norm_rms_epsilon") == pytest.approx(1e-5)
    assert field(target, "llama.rope.freq_base") == pytest.approx(20000.0)


def test_the_miniatures_pieces_scores_and_types_are_sentencepieces(tmp_path: Path) -> None:
    """Its 259 first pieces: three of control, 256 bytes (types by gguf.TokenType: unknown 2, control 3, byte 6)."""
    target = to_gguf(MINIATURE / "llama", tmp_path / "target")
    pieces = gguf.SentencePieceVocab(MINIATURE / "llama")
    expected = list(pieces.all_tokens())
    assert field(target, "tokenizer.ggml.tokens") == [text.decode() for text, _, _ in expected]
    assert field(target, "tokenizer.ggml.token_type") == [int(kind) for _, _, kind in expected]
    assert field(target, "tokenizer.ggml.scores") == pytest.approx([score for _, score, _ in expected])
    assert field(target, "tokenizer.ggml.token_type")[:4] == [2, 3, 3, 6]


def test_rows_behind_the_pieces_are_unused_padding_or_added_tokens(tmp_path: Path) -> None:
    save_llama(tmp_path / "base")
    (tmp_path / "base" / "tokenizer.model").write_bytes(sentencepiece_file(piece_names(97)))
    (tmp_path / "base" / "tokenizer_config.json").write_text(
        json.dumps({"added_tokens_decoder": {"97": {"content": "<sep>", "special": True}}})
    )
    (tmp_path / "base" / "added_tokens.json").write_text(json.dumps({"more": 98}))

    target = to_gguf(tmp_path / "base", tmp_path / "target")

    assert field(target, "tokenizer.ggml.tokens")[96:] == ["p93", "<sep>", "more", "[PAD99]", "[PAD100]"]
    assert field(target, "tokenizer.ggml.token_type")[96:] == [1, 3, 4, 5, 5]


def test_a_chat_template_travels_on(tmp_path: Path) -> None:
    save_llama(tmp_path / "base")
    (tmp_path / "base" / "chat_template.jinja").write_text("{{ messages }}")
    assert field(to_gguf(tmp_path / "base", tmp_path / "t"), "tokenizer.chat_template") == "{{ messages }}"


def test_llama_3s_scaling_is_written_as_frequency_factors(tmp_path: Path) -> None:
    """Against transformers: its inverse frequencies are the unscaled ones over the factors."""
    scaling = {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64, "rope_theta": 500.0,
    }  # fmt: skip
    model = save_llama(
        tmp_path / "base", torch.float32, head_dim=12, rope_parameters=scaling, max_position_embeddings=512
    )
    unscaled = 500.0 ** -(torch.arange(0, 12, 2).float() / 12)
    expected = unscaled / model.model.rotary_emb.inv_freq

    found = tensors_of(to_gguf(tmp_path / "base", tmp_path / "target"))["rope_freqs.weight"]

    assert (found.tensor_type.name, len(found.data)) == ("F32", 6)
    assert 1 < float(expected[2]) < 8, "a frequency lies between the two"
    assert np.allclose(found.data, expected.numpy(), rtol=1e-5)


def test_linear_scaling_is_written(tmp_path: Path) -> None:
    save_llama(tmp_path / "base", rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4})
    target = to_gguf(tmp_path / "base", tmp_path / "target")
    assert (field(target, "llama.rope.scaling.type"), field(target, "llama.rope.scaling.factor")) == (
        "linear",
        2.0,
    )
    assert rope_factors(read_checkpoint(tmp_path / "base").config) == {}


def test_files_are_readable_by_all(tmp_path: Path) -> None:
    save_llama(tmp_path / "base")
    target = to_gguf(tmp_path / "base", tmp_path / "target")
    assert stat.S_IMODE((target / "model.gguf").stat().st_mode) == 0o644
    assert (target / "Modelfile").read_text() == "FROM ./model.gguf\n"


# ---- refused ------------------------------------------------------------------------------------------


def refused(base: Path, error: type[GraftwerkError], *phrases: str, dtype: Any = None) -> None:
    """By intake and by the conversion, in the same words, before anything is written."""
    (base.parent / "target").mkdir()
    request = ConvertRequest(
        kind="convert", source=base.name, target="new", output_format="gguf", dtype=dtype
    )
    options = ConvertOptions(output_format="gguf", dtype={"q8_0": "Q8_0", None: None}[dtype])
    store = ModelStore(base.parent)
    for door in (
        lambda: preflight(request, store, {}),
        lambda: convert(base, base.parent / "target", options),
    ):
        with pytest.raises(error) as caught:
            door()
        for phrase in phrases:
            assert phrase in f"{caught.value.message} {caught.value.hint}"
    assert list((base.parent / "target").iterdir()) == []


def test_rows_that_are_no_whole_blocks_are_refused(tmp_path: Path) -> None:
    save_llama(tmp_path / "base")
    phrase = "rows of 48 elements; Q8_0 encodes blocks of 32 (16 are left), so no tensor"
    refused(tmp_path / "base", UnsupportedOption, phrase, dtype="q8_0")


def test_matrices_whose_rows_are_no_whole_blocks_keep_their_dtype_and_are_told(tmp_path: Path) -> None:
    """64 columns are two blocks, 140 are not."""
    save_llama(tmp_path / "base", torch.bfloat16, hidden_size=64)
    request = ConvertRequest(kind="convert", source="base", target="new", output_format="gguf", dtype="q8_0")
    plan = preflight(request, ModelStore(tmp_path), {})
    found = tensors_of(to_gguf(tmp_path / "base", tmp_path / "target", dtype="Q8_0"))
    kinds = {name: tensor.tensor_type.name for name, tensor in found.items() if ".1." in name}
    assert kinds["blk.1.ffn_down.weight"] == "BF16"
    assert {kind for name, kind in kinds.items() if "norm" not in name and "down" not in name} == {"Q8_0"}
    assert "3 matrices, model.layers.0.mlp.down_proj.weight the first" in plan.warnings[0]


def test_a_model_without_a_sentencepiece_tokenizer_is_refused(tmp_path: Path) -> None:
    save_llama(tmp_path / "base")
    (tmp_path / "base" / "tokenizer.model").unlink()
    refused(tmp_path / "base", UnsupportedFormat, "carries its tokenizer", "the model has none")


def test_a_model_without_a_tokenizer_model_is_refused(tmp_path: Path) -> None:
    save_llama(tmp_path / "base")
    (tmp_path / "base" / "tokenizer.model").unlink()
    refused(tmp_path / "base", UnsupportedFormat, "is written from tokenizer.model; the model has none")


def test_an_unknown_scaling_is_refused_by_its_type(tmp_path: Path) -> None:
    save_llama(tmp_path / "base", rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4})
    refused(tmp_path / "base", UnsupportedFormat, "'dynamic'")


def test_float64_needs_a_dtype(tmp_path: Path) -> None:
    save_llama(tmp_path / "base", torch.float64)
    refused(tmp_path / "base", UnsupportedOption, "float64", '"float32"')


def test_a_value_beyond_an_encodings_scale_is_refused_by_name(tmp_path: Path) -> None:
    model = save_llama(tmp_path / "base", torch.float32, **WIDE)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = 1e7
    model.save_pretrained(tmp_path / "base")
    with pytest.raises(NonFiniteTensor, match=r"'model\.layers\.1\.mlp\.up_proj\.weight' holds 1e\+07"):
        to_gguf(tmp_path / "base", tmp_path / "target", dtype="Q8_0")


@pytest.mark.parametrize("output", ["huggingface", "meta"])
def test_q8_0_of_another_output_is_an_invalid_request(output: Any) -> None:
    with pytest.raises(ValidationError, match=f"'q8_0' is an encoding of output_format 'gguf'.*{output}"):
        ConvertRequest(kind="convert", source="a", target="b", output_format=output, dtype="q8_0")


def test_a_cancel_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    save_llama(tmp_path / "base")
    store = ModelStore(tmp_path / "volume")
    done: list[int] = []

    def check_canceled() -> None:
        if len(done) > 6:
            raise JobCanceled("canceled")

    watch = WriteHooks(report=lambda progress: done.append(progress.done), check_canceled=check_canceled)
    with pytest.raises(JobCanceled), store.publishing("model", execution="e1") as staging:
        convert(tmp_path / "base", staging, ConvertOptions(output_format="gguf"), watch)

    assert store.names() == []


# ---- merges and jobs ----------------------------------------------------------------------------------


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
    model = result.model.model_dump()
    assert (model["kind"], model["problems"], model["dtypes"]) == ("gguf", [], ["q8_0", "float32"])
    assert (model["vocabulary_size"], model["architecture"]["name"]) == (101, "llama")
    assert (model["architecture"]["file_type"], model["architecture"]["tensors"]) == (7, 30)
    assert model["parameters"] == sum(math.prod(int(n) for n in tensor.shape) for tensor in stored.values())
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
