"""Merges into a base in 4 bits: bitsandbytes' and PEFT's bits, and the weights that transformers quantizes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from services.architectures.checkpoint_reader import read_checkpoint
from services.errors import (
    GraftwerkError,
    IncompleteCheckpoint,
    UnreadableFile,
    UnsupportedFormat,
    UnsupportedOption,
)
from services.kinds import ANY_REQUEST
from services.kinds.verify import VerifyRequest
from services.merge import MergeOptions
from services.merge.base_precision import at_precision, quantized_weights, rounded_weights
from services.models.manifest import read_manifest
from services.models.summary import describe_folder
from tests.contract.merge_models import assert_same_bits, merged, tensors_of
from tests.contract.resume_child import make
from tests.job_context import job_context
from tests.reference.huggingface_model import save_llama
from tests.reference.peft_merge import State, make_adapter
from worker.models import verify

SIZES: dict[str, Any] = {"num_hidden_layers": 2, "hidden_size": 48, "intermediate_size": 140}
FOUR_BITS = [
    {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": False},
    {"bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": True},
]


def loaded(folder: Path, dtype: torch.dtype, **options: Any) -> Any:
    """The model with Linear4bit layers, by transformers."""
    make_config: Any = BitsAndBytesConfig
    config = make_config(load_in_4bit=True, **options)
    load: Any = AutoModelForCausalLM.from_pretrained
    return load(folder, quantization_config=config, dtype=dtype, device_map="cpu")


def decoded(weight: Any) -> torch.Tensor:
    """Code times scale of each block of a Linear4bit weight (Dettmers and others, QLoRA, 2023, section 3), in its dtype.

    bitsandbytes' own decoding is wrong on a CPU with AVX-512 where a block goes on in the next row, as in rows of 48.
    """
    from bitsandbytes.functional import dequantize_blockwise

    state, packed = weight.quant_state, weight.data.flatten()
    codes = torch.stack([packed >> 4, packed & 15], 1).flatten().long()
    scales = dequantize_blockwise(state.absmax, state.state2) + state.offset if state.nested else state.absmax
    values = state.code[codes] * scales.float().repeat_interleave(state.blocksize)[: codes.numel()]
    return values.reshape(state.shape).to(state.dtype)


def expected_state(folder: Path, adapter: Path, dtype: torch.dtype, **options: Any) -> State:
    """Each tensor as PEFT computes it in `Linear4bit.merge` before it quantizes again, in the base's dtype."""
    original = tensors_of(folder)
    model: Any = PeftModel.from_pretrained(loaded(folder, dtype, **options), adapter)
    state: State = {}
    for name, module in model.base_model.model.named_modules():
        if type(module).__name__ == "Linear4bit" and hasattr(module, "get_delta_weight"):
            weight = decoded(module.get_base_layer().weight)
            state[f"{name}.weight"] = (weight + module.get_delta_weight("default")).to(dtype)
        elif type(module).__name__ == "Linear4bit" and not name.endswith("base_layer"):
            state[f"{name}.weight"] = decoded(module.weight).to(dtype)
    return {name: state.get(name, tensor) for name, tensor in original.items()}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("qlora")
    save_llama(root / "base", torch.bfloat16, **SIZES)
    make_adapter(root / "a", seed=3, target_modules=["q_proj", "down_proj"], layers_to_transform=[0, 1])
    return root


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_dequantized_base_gives_the_bits_of_pefts_merge_into_linear4bit(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    save_llama(tmp_path / "base", dtype, **SIZES)
    make_adapter(tmp_path / "a", seed=3, target_modules=["q_proj", "down_proj"], layers_to_transform=[0, 1])
    merged(tmp_path / "base", [tmp_path / "a"], tmp_path / "made", base_precision="dequantized")
    found, expected = (
        tensors_of(tmp_path / "made"),
        expected_state(tmp_path / "base", tmp_path / "a", dtype, **FOUR_BITS[0]),
    )
    assert_same_bits(found, expected)
    original = tensors_of(tmp_path / "base")
    changed = {name.split(".")[-2] for name in found if not torch.equal(found[name], original[name])}
    assert changed == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.mark.parametrize("options", FOUR_BITS, ids=str)
def test_a_base_that_is_stored_in_4_bits_is_taken(
    root: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    loaded(root / "base", torch.bfloat16, **options).save_pretrained(tmp_path / "stored")
    made = merged(tmp_path / "stored", [root / "a"], tmp_path / "made", base_precision="dequantized")
    assert_same_bits(
        tensors_of(tmp_path / "made"), expected_state(root / "base", root / "a", torch.bfloat16, **options)
    )
    config = json.loads((tmp_path / "made" / "config.json").read_text())
    assert "quantization_config" not in config
    assert len(rounded_weights(made.base)) == 14
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "made")
    assert type(model.model.layers[0].mlp.up_proj).__name__ == "Linear"


def test_the_weights_are_those_that_transformers_quantizes(root: Path, tmp_path: Path) -> None:
    for tied in (False, True):
        folder = tmp_path / str(tied)
        save_llama(folder, tie_word_embeddings=tied, **SIZES)
        wanted = {
            f"{name}.weight" for name, module in loaded(folder, torch.float16).named_modules()
            if type(module).__name__ == "Linear4bit"
        }  # fmt: skip
        assert set(quantized_weights(read_checkpoint(folder))) == wanted


def test_a_head_that_was_stored_in_full_stays(root: Path) -> None:
    base = read_checkpoint(root / "base")
    assert at_precision(base, "original") is base
    assert not {"lm_head.weight", "model.embed_tokens.weight"} & set(
        rounded_weights(at_precision(base, "dequantized"))
    )


# ---- jobs ---------------------------------------------------------------------------------------------


def job(root: Path, **more: Any) -> dict[str, Any]:
    request = {"kind": "merge", "base": "base", "adapters": ["a"], **more}
    return make(ANY_REQUEST.validate_python(request), job_context(root))


@pytest.fixture(scope="module")
def jobs(root: Path) -> dict[str, dict[str, Any]]:
    """Results of the merge in both precisions, with the comparison."""
    return {
        precision: job(root, target=precision, base_precision=precision, compare_precisions=True)
        for precision in ("original", "dequantized")
    }


def test_the_choice_is_in_result_and_manifest(root: Path, jobs: dict[str, dict[str, Any]]) -> None:
    assert jobs["original"]["base_quantization"] is None
    assert jobs["dequantized"]["base_quantization"] == {
        "tensors": 14, "quant_type": "nf4", "block_size": 64, "double_quantization": True, "stored": False,
    }  # fmt: skip
    assert jobs["dequantized"]["verification"]["passed"]
    for precision in jobs:
        manifest = read_manifest(root / precision)
        assert manifest is not None and manifest.options["base_precision"] == precision
        assert f"| base precision | `{precision}` |" in (root / precision / "README.md").read_text()


def test_the_difference_is_measured_from_either_side(root: Path, jobs: dict[str, dict[str, Any]]) -> None:
    original, dequantized = tensors_of(root / "original"), tensors_of(root / "dequantized")
    expected = {}
    for kind in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"):
        names = [name for name in original if f".{kind}." in name]
        one, other = (
            torch.cat([state[n].double().flatten() for n in names]) for state in (original, dequantized)
        )
        expected[kind] = {
            "relative_norm": pytest.approx(float((one - other).norm() / one.norm()), rel=1e-12),
            "differing_elements": int((one != other).sum()), "elements": one.numel(),
        }  # fmt: skip
    assert jobs["original"]["precisions"] == jobs["dequantized"]["precisions"] == expected


def test_a_dequantized_merge_is_another_one(root: Path, jobs: dict[str, dict[str, Any]]) -> None:
    assert "same_as" not in job(root, target="plain")
    assert (
        job(root, target="again", base_precision="dequantized", compare_precisions=True)["same_as"]
        == "dequantized"
    )
    assert "same_as" not in job(root, target="uncompared", base_precision="dequantized")


def test_a_verification_takes_the_precision_of_the_manifest(
    root: Path, jobs: dict[str, dict[str, Any]]
) -> None:
    for model in jobs:
        request = VerifyRequest.model_validate(
            {"kind": "verify", "model": model, "base": "base", "adapters": ["a"]}
        )
        assert verify.run(request, job_context(root)).passed


# ---- refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "card", "phrases"),
    [
        ({"quant_method": "gptq", "bits": 4}, "base_model: org/original", ("'GPTQ' in 4 bits", "org/original")),
        ({"quant_method": "awq", "bits": 4}, "base_model:\n- org/one", ("'AWQ' in 4 bits", "org/one")),
        ({"quant_method": "fp8"}, "", ("'FP8'", "that it was quantized from")),
        ({"quant_method": "mxfp4"}, "", ("'MXFP4'",)),
        ({"quant_method": "compressed-tensors"}, "", ("'compressed-tensors'",)),
        ({"quant_method": "new-one"}, "", ("'new-one'",)),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "", ("'bitsandbytes' in 8 bits",)),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "", ("'bitsandbytes' in 4 bits", "base_precision")),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
@pytest.mark.parametrize("key", ["quantization_config", "compression_config"])
def test_a_quantized_base_is_refused_by_its_method(
    tmp_path: Path, config: dict[str, Any], card: str, phrases: tuple[str, ...], key: str
) -> None:
    save_llama(tmp_path / "base", **SIZES)
    path = tmp_path / "base" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: config}))
    (tmp_path / "base" / "README.md").write_text(f"---\n{card}\n---\n")
    with pytest.raises(UnsupportedFormat) as caught:
        read_checkpoint(tmp_path / "base")
    for phrase in phrases:
        assert phrase in f"{caught.value.message} {caught.value.hint}"


def test_the_name_in_the_configuration_is_the_original_too(tmp_path: Path) -> None:
    save_llama(tmp_path / "base", **SIZES)
    path = tmp_path / "base" / "config.json"
    more = {"quantization_config": {"quant_method": "gptq"}, "_name_or_path": "org/trained"}
    path.write_text(json.dumps({**json.loads(path.read_text()), **more}))
    with pytest.raises(UnsupportedFormat) as caught:
        read_checkpoint(tmp_path / "base", dequantized=True)
    assert "org/trained" in caught.value.hint


WEIGHT = "model.layers.0.self_attn.q_proj.weight"
STATE = f"{WEIGHT}.quant_state.bitsandbytes__nf4"


def described(**changes: Any) -> Any:
    def change(state: State) -> None:
        raw = {**json.loads(bytes(state[STATE].numpy())), **changes}
        state[STATE] = torch.frombuffer(bytearray(json.dumps(raw).encode()), dtype=torch.uint8)

    return change


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda state: state.pop(f"{WEIGHT}.absmax"), IncompleteCheckpoint),
        (lambda state: state.pop(f"{WEIGHT}.nested_quant_map"), IncompleteCheckpoint),
        (lambda state: state.pop(STATE), GraftwerkError),
        (lambda state: state.update({f"{WEIGHT}.more": torch.zeros(3)}), GraftwerkError),
        (lambda state: state.update({STATE: torch.zeros(9, dtype=torch.uint8)}), UnreadableFile),
        (
            lambda state: state.update({f"{WEIGHT}.absmax": torch.zeros(35, dtype=torch.uint8)}),
            UnreadableFile,
        ),
        (described(shape=[48, 480]), UnreadableFile),
        (described(shape=[-48, -48]), UnreadableFile),
        (described(shape=[24, 96]), GraftwerkError),
        (described(shape=None), UnreadableFile),
        (described(blocksize=0), UnreadableFile),
        (described(nested_blocksize="x"), UnreadableFile),
        (described(dtype="float8"), UnreadableFile),
        (described(quant_type="fp4"), UnreadableFile),
    ],
)
def test_a_damaged_4_bit_base_is_refused(
    root: Path, tmp_path: Path, change: Any, error: type[GraftwerkError]
) -> None:
    loaded(root / "base", torch.bfloat16, **FOUR_BITS[0]).save_pretrained(tmp_path / "stored")
    path = tmp_path / "stored" / "model.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path)
    with pytest.raises(error):
        read_checkpoint(tmp_path / "stored", dequantized=True)


def test_a_stored_base_is_described_without_a_problem(root: Path, tmp_path: Path) -> None:
    loaded(root / "base", torch.bfloat16, **FOUR_BITS[0]).save_pretrained(tmp_path / "stored")
    summary, original = (describe_folder(folder, "x") for folder in (tmp_path / "stored", root / "base"))
    assert summary.problems == []
    assert (summary.parameters, summary.dtypes) == (original.parameters, ["bfloat16"])


def test_a_stored_base_has_no_original_to_compare_with(root: Path) -> None:
    loaded(root / "base", torch.bfloat16, **FOUR_BITS[0]).save_pretrained(root / "stored")
    with pytest.raises(UnsupportedOption, match="stored in 4 bits"):
        job(root, base="stored", target="x", base_precision="dequantized", compare_precisions=True)
    with pytest.raises(UnsupportedFormat, match="stored quantized"):
        job(root, base="stored", target="x")


def test_without_bitsandbytes_nothing_is_written(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for more in ({"base_precision": "dequantized"}, {"compare_precisions": True}):
        with pytest.raises(UnsupportedOption, match="bitsandbytes"):
            job(root, target="x", force=True, **more)
    assert not (root / "x").exists()


def test_the_options_of_a_merge_into_the_original_are_those_of_older_journals() -> None:
    expected = "MergeOptions(rounding='per_adapter', dtype=None, max_shard_bytes=5000000000, output_format='huggingface', ranks=None, template=None, device='cpu')"
    assert repr(MergeOptions().identity) == f"({expected},)"
    assert repr(MergeOptions(base_precision="dequantized").identity) == f"({expected}, 'dequantized')"
