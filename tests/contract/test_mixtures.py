"""Mixtures of experts: merges with PEFT's bits, each expert's tensors accounted for, and packings that are not known."""

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from services.adapters.adapter import read_adapter
from services.architectures.checkpoint_reader import read_checkpoint
from services.architectures.mixtures import MIXTURES
from services.errors import (
    AdapterMismatch,
    GraftwerkError,
    IncompleteAdapter,
    IncompleteCheckpoint,
    ShapeMismatch,
    UnknownAdapterKey,
    UnknownTensor,
    UnsupportedAdapter,
    UnsupportedFormat,
    UnsupportedOption,
)
from services.generate import Engine, GenerationRequest, load_model
from services.kinds import ANY_REQUEST
from services.models.store import ModelStore
from services.models.summary import describe_folder
from services.preflight import preflight
from services.sampling import Sampling
from tests.contract.merge_models import assert_same_bits, merged, tensors_of
from tests.contract.resume_child import make
from tests.job_context import job_context
from tests.reference.families import save_tiny, save_tiny_adapter

ATTENTION = ["q_proj", "v_proj", "o_proj"]
ROUTER, GATE_UP, DOWN = "mlp.gate.weight", "mlp.experts.gate_up_proj", "mlp.experts.down_proj"
TARGETS: dict[str, dict[str, Any]] = {
    "attention": {"target_modules": ATTENTION},
    "router": {"target_modules": ["q_proj"], "target_parameters": [ROUTER]},
    "gate and up": {"target_modules": ["q_proj"], "target_parameters": [GATE_UP]},
    "down": {"target_modules": ["q_proj"], "target_parameters": [DOWN]},
    "all": {"target_modules": ATTENTION, "target_parameters": [ROUTER, GATE_UP, DOWN], "use_rslora": True},
}


@pytest.fixture(scope="module", params=MIXTURES)
def base(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, PreTrainedModel]:
    folder = tmp_path_factory.mktemp("mixtures") / request.param
    return folder, save_tiny(request.param, folder)


def merged_by_peft(model: PreTrainedModel, adapters: Sequence[Path], folder: Path) -> dict[str, torch.Tensor]:
    """Files of PEFT's merge, saved by transformers: a tensor per expert, under the names of the base's own files."""
    model = copy.deepcopy(model)
    for adapter in adapters:
        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    model.save_pretrained(folder)
    return tensors_of(folder)


@pytest.mark.parametrize("targets", TARGETS)
def test_a_merge_gives_pefts_bits(base: tuple[Path, PreTrainedModel], tmp_path: Path, targets: str) -> None:
    folder, model = base
    adapter = save_tiny_adapter(tmp_path / "a", model, **TARGETS[targets])
    made = merged(folder, [adapter], tmp_path / "made")
    found, original = tensors_of(tmp_path / "made"), tensors_of(folder)
    assert_same_bits(found, merged_by_peft(model, [adapter], tmp_path / "peft"))
    changed = {name for name in found if not torch.equal(found[name], original[name])}
    assert changed == made.adapters[0].adapter.changed
    experts = {name for name in changed if ".experts." in name}
    assert len(experts) == {"gate and up": 2 * 5 * 2, "down": 2 * 5, "all": 2 * 5 * 3}.get(targets, 0)
    assert made.accounts[0].tensors == len(load_file(adapter / "adapter_model.safetensors"))


def of_transformers_4(base: Path, adapter: Path, modules: Sequence[str]) -> Path:
    """The adapter with pairs for the linear modules of each expert and the router, as transformers 4 had them."""
    state = load_file(adapter / "adapter_model.safetensors")
    generator = torch.Generator().manual_seed(5)
    for name, tensor in tensors_of(base).items():
        if name.split(".")[-2] in modules:
            rows, columns = tensor.shape
            key = f"base_model.model.{name.removesuffix('.weight')}"
            state[f"{key}.lora_A.weight"] = torch.randn(4, columns, generator=generator) * 0.1
            state[f"{key}.lora_B.weight"] = torch.randn(rows, 4, generator=generator) * 0.1
    save_file(state, adapter / "adapter_model.safetensors")
    reconfigured(target_modules=["q_proj", *modules])(adapter)
    return adapter


@pytest.mark.parametrize(
    ("model_type", "modules"),
    [
        ("mixtral", ["w1", "w2", "w3"]), ("mixtral", ["gate", "w1", "w2", "w3"]),
        ("qwen3_moe", ["gate", "gate_proj", "up_proj", "down_proj"]),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys:RuntimeWarning")
def test_an_adapter_of_transformers_4_gives_pefts_bits(
    tmp_path: Path, model_type: str, modules: Sequence[str]
) -> None:
    model = save_tiny(model_type, tmp_path / "base")
    plain = save_tiny_adapter(tmp_path / "a", model, target_modules=["q_proj"])
    adapter = of_transformers_4(tmp_path / "base", plain, modules)
    merged(tmp_path / "base", [adapter], tmp_path / "made")
    assert_same_bits(tensors_of(tmp_path / "made"), merged_by_peft(model, [adapter], tmp_path / "peft"))


def test_only_a_merge_takes_pairs_for_all_experts(base: tuple[Path, PreTrainedModel], tmp_path: Path) -> None:
    adapter = save_tiny_adapter(tmp_path / "a", base[1], **TARGETS["down"])
    with pytest.raises(UnsupportedAdapter, match="only a merge"):
        read_adapter(adapter)
    summary = describe_folder(adapter, "a")
    assert summary.problems == [] and summary.adapter is not None
    assert summary.adapter["target_modules"] == ["down_proj", "q_proj"]


def test_two_adapters_one_after_another(base: tuple[Path, PreTrainedModel], tmp_path: Path) -> None:
    folder, model = base
    adapters = [
        save_tiny_adapter(tmp_path / "a", model, seed=3, **TARGETS["all"]),
        save_tiny_adapter(tmp_path / "b", model, seed=4, r=7, **TARGETS["gate and up"]),
    ]
    merged(folder, adapters, tmp_path / "made")
    assert_same_bits(tensors_of(tmp_path / "made"), merged_by_peft(model, adapters, tmp_path / "peft"))


def test_a_merged_mixture_is_checked_by_rows_and_generates(
    base: tuple[Path, PreTrainedModel], tmp_path: Path
) -> None:
    folder, model = base
    (tmp_path / "base").symlink_to(folder)
    save_tiny_adapter(tmp_path / "a", model, **TARGETS["all"])
    request = {"kind": "merge", "base": "base", "adapters": ["a"], "target": "made"}
    result = make(ANY_REQUEST.validate_python(request), job_context(tmp_path))
    assert result["verification"]["passed"] and result["verification"]["rows_recomputed"] > 500
    loaded = load_model(tmp_path / "made")
    engine = Engine(loaded)
    prompt = loaded.tokenizer.encode("and the")
    engine.submit(
        GenerationRequest(prompt, Sampling(do_sample=False, max_new_tokens=6, repetition_penalty=1.0))
    )
    found = [event.token_id for _ in range(9) for event in engine.step() if hasattr(event, "token_id")]
    reference: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "made", dtype=torch.float32)
    expected = reference.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=6)[0, len(prompt) :]
    assert found == expected.tolist()


@pytest.mark.parametrize("model_type", MIXTURES)
def test_classes_are_those_of_transformers(model_type: str) -> None:
    row, config = MIXTURES[model_type], AutoConfig.for_model(model_type)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, num_hidden_layers=1))
    assert type(model).__name__ == row.architecture
    for key, value in row.config_defaults.items():
        assert (config.rope_parameters if key == "rope_theta" else vars(config))[key] == value
    sizes = row.sizes(config.to_dict())
    assert tuple(model.model.layers[0].mlp.experts.down_proj.shape) == sizes


# ---- bases that are refused ---------------------------------------------------------------------------


def changed_file(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = next(folder.glob("*.safetensors"))
    state = load_file(path)
    change(state)
    save_file(state, path)


EXPERT = "model.layers.1.mlp.experts.4.up_proj.weight"


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda s: s.pop(EXPERT), IncompleteCheckpoint, "experts.4.up_proj"),
        (lambda s: [s.pop(n) for n in list(s) if ".experts.4." in n], IncompleteCheckpoint, "experts.4"),
        (lambda s: s.update({EXPERT.replace("4.up", "5.up"): s[EXPERT].clone()}), UnknownTensor, "experts.5"),
        (lambda s: s.update({EXPERT: s[EXPERT][:30].clone()}), ShapeMismatch, "experts.4.up_proj"),
        (lambda s: s.pop("model.layers.0.mlp.gate.weight"), GraftwerkError, "mlp.gate"),
    ],
)
def test_every_expert_is_accounted_for(
    tmp_path: Path, change: Any, error: type[GraftwerkError], words: str
) -> None:
    model = save_tiny("qwen3_moe", tmp_path / "base")
    adapter = save_tiny_adapter(tmp_path / "a", model, **TARGETS["attention"])
    changed_file(tmp_path / "base", change)
    with pytest.raises(error, match=words):
        merged(tmp_path / "base", [adapter], tmp_path / "made")
    assert not list((tmp_path / "made").iterdir())


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"num_local_experts": 4}, UnknownTensor),
        ({"num_local_experts": 6}, IncompleteCheckpoint),
        ({"num_local_experts": None}, IncompleteCheckpoint),
        ({"num_local_experts": 10**9}, UnsupportedFormat),
        ({"moe_intermediate_size": 80}, ShapeMismatch),
        ({"mlp_only_layers": [1]}, UnsupportedFormat),
        ({"decoder_sparse_step": 2}, UnsupportedFormat),
    ],
    ids=str,
)
def test_a_config_of_another_mixture_is_refused(
    tmp_path: Path, changes: dict[str, Any], error: type[GraftwerkError]
) -> None:
    save_tiny("qwen3_moe", tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(error):
        read_checkpoint(tmp_path)


def test_a_dequantized_mixture_is_refused(base: tuple[Path, PreTrainedModel], tmp_path: Path) -> None:
    adapter = save_tiny_adapter(tmp_path / "a", base[1], **TARGETS["attention"])
    with pytest.raises(UnsupportedOption, match="mixture of experts"):
        merged(base[0], [adapter], tmp_path / "made", base_precision="dequantized")
    (tmp_path / "base").symlink_to(base[0])
    for more in ({"base_precision": "dequantized"}, {"compare_precisions": True}):
        request = {"kind": "merge", "base": "base", "adapters": ["a"], "target": "x", **more}
        with pytest.raises(UnsupportedOption, match="mixture of experts"):
            preflight(ANY_REQUEST.validate_python(request), ModelStore(tmp_path), ())


# ---- adapters that are refused ------------------------------------------------------------------------

PACK = "base_model.model.model.layers.0.mlp.experts"


def reconfigured(**changes: Any) -> Callable[[Path], None]:
    def change(adapter: Path) -> None:
        path = adapter / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def rewritten(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    return lambda adapter: changed_file(adapter, change)


def swapped(state: dict[str, torch.Tensor]) -> None:
    """The layout in which the parameter's rows are the input: A has 2 * width columns, B the hidden size as rows."""
    state[f"{PACK}.base_layer.lora_A.weight"] = torch.zeros(20, 72)
    state[f"{PACK}.base_layer.lora_B.weight"] = torch.zeros(48, 20)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (reconfigured(peft_version=None), UnsupportedAdapter, "how the experts are packed is not"),
        (reconfigured(target_parameters=None), UnsupportedAdapter, "how the experts are packed is not"),
        (reconfigured(alpha_pattern={"experts": 3}), UnsupportedAdapter, "alpha_pattern"),
        (reconfigured(target_parameters=[ROUTER, DOWN]), AdapterMismatch, "base_layer|target_parameters"),
        (reconfigured(r=5), GraftwerkError, "rank 5"),
        (rewritten(swapped), UnsupportedAdapter, "rows and columns are exchanged"),
        (rewritten(lambda s: s.pop(f"{PACK}.lora_A.weight")), IncompleteAdapter, "lora_B"),
        (rewritten(lambda s: s.update({f"{PACK}.lora_A.weight": torch.zeros(16, 36), f"{PACK}.lora_B.weight": torch.zeros(48, 16)})),
         AdapterMismatch, "5 experts"),
        (rewritten(lambda s: s.update({f"{PACK}.lora_A.weight": s[f"{PACK}.base_layer.lora_A.weight"].clone(),
                                       f"{PACK}.lora_B.weight": s[f"{PACK}.base_layer.lora_B.weight"].clone()})),
         UnknownAdapterKey, "twice"),
    ],
)  # fmt: skip
def test_a_packing_that_is_not_known_is_refused(
    tmp_path: Path, change: Callable[[Path], None], error: type[GraftwerkError], words: str
) -> None:
    model = save_tiny("qwen3_moe", tmp_path / "base")
    options = {**TARGETS["all"], "target_modules": ["q_proj"], "target_parameters": [GATE_UP, DOWN]}
    adapter = save_tiny_adapter(tmp_path / "a", model, **options)
    change(adapter)
    with pytest.raises(error, match=words):
        merged(tmp_path / "base", [adapter], tmp_path / "made")


def test_a_packing_whose_orientation_is_ambiguous_is_refused(tmp_path: Path) -> None:
    """Hidden size 48 and twice the width of 24: A and B fit either orientation."""
    model = save_tiny("qwen3_moe", tmp_path / "base", moe_intermediate_size=24)
    adapter = save_tiny_adapter(tmp_path / "a", model, **TARGETS["gate and up"])
    with pytest.raises(UnsupportedAdapter, match=r"rows and columns are exchanged, and as PEFT 0\.21"):
        merged(tmp_path / "base", [adapter], tmp_path / "made")


def test_experts_of_a_dense_base_are_refused(tmp_path: Path) -> None:
    adapter = save_tiny_adapter(tmp_path / "a", save_tiny("qwen3_moe", tmp_path / "m"), **TARGETS["down"])
    save_tiny("qwen3", tmp_path / "base")
    with pytest.raises(UnknownAdapterKey, match="has no experts"):
        merged(tmp_path / "base", [adapter], tmp_path / "made")
