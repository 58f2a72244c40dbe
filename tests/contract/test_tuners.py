"""Every tuner type that is offered merges to what PEFT's merge of the whole model gives, one adapter after another."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from services.adapters.adapter import read_adapter
from services.adapters.tuners import LAYER_TYPES
from services.checkpoints.write_hooks import WriteHooks
from services.errors import AdapterMismatch, IncompleteAdapter, UnsupportedAdapter, VerificationFailed
from services.files.weight_files import read_weights
from services.merge import MergeOptions, merge
from services.verify import verify_merge

pytestmark = [
    # PEFT tells trainers about defaults and future changes; here adapters only have to be made
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

TARGETS = ["q_proj", "v_proj", "down_proj"]

CONFIGS: dict[str, Any] = {
    "DORA": lambda: peft.LoraConfig(r=5, lora_alpha=7, target_modules=TARGETS, use_dora=True),
    "RSLORA_DORA": lambda: peft.LoraConfig(r=5, use_rslora=True, target_modules=TARGETS, use_dora=True),
    "IA3": lambda: peft.IA3Config(target_modules=TARGETS, feedforward_modules=["down_proj"]),
    "LOHA": lambda: peft.LoHaConfig(r=4, target_modules=TARGETS),
    "LOKR": lambda: peft.LoKrConfig(r=4, target_modules=TARGETS),
    "OFT": lambda: peft.OFTConfig(r=4, oft_block_size=0, target_modules=["q_proj"]),
    "BOFT": lambda: peft.BOFTConfig(boft_block_size=4, target_modules=["q_proj"]),
    "HRA": lambda: peft.HRAConfig(r=4, target_modules=TARGETS),
    "FOURIERFT": lambda: peft.FourierFTConfig(n_frequency=20, target_modules=TARGETS),
    "VERA": lambda: peft.VeraConfig(r=4, target_modules=["q_proj", "o_proj"]),
    "VERA_SIZES": lambda: peft.VeraConfig(r=4, target_modules=[*TARGETS, "up_proj"]),
    "VERA_SEED": lambda: peft.VeraConfig(r=4, target_modules=["v_proj"], save_projection=False),
    "RANDLORA": lambda: peft.RandLoraConfig(r=5, target_modules=["q_proj"]),
    "RANDLORA_SIZES": lambda: peft.RandLoraConfig(r=5, target_modules=[*TARGETS, "up_proj"]),
    "RANDLORA_SPARSE": lambda: peft.RandLoraConfig(r=4, target_modules=TARGETS, sparse=True),
    "ADALORA": lambda: peft.AdaLoraConfig(init_r=4, target_r=4, total_step=10, target_modules=TARGETS),
    "MISS": lambda: peft.MissConfig(r=4, target_modules=["q_proj"]),
    "GRALORA": lambda: peft.GraloraConfig(r=4, target_modules=["q_proj"]),
    "TRAINABLE_TOKENS": lambda: peft.TrainableTokensConfig(token_indices=[3, 77], target_modules=["embed_tokens"]),
    "LORA_TOKENS": lambda: peft.LoraConfig(
        r=5, target_modules=TARGETS, trainable_token_indices={"embed_tokens": [3, 9]}
    ),
    "TARGET_PARAMETERS": lambda: peft.LoraConfig(r=5, target_modules=[], target_parameters=["q_proj.weight"]),
    "BIAS_ALL": lambda: peft.LoraConfig(r=5, target_modules=TARGETS, bias="all"),
}  # fmt: skip


def base_model(dtype: torch.dtype) -> LlamaForCausalLM:
    torch.manual_seed(1)
    config = LlamaConfig(
        hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=8, num_key_value_heads=4,
        head_dim=6, vocab_size=101,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(dtype)


def make_adapter(folder: Path, kind: str) -> Path:
    model = peft.get_peft_model(base_model(torch.float32), CONFIGS[kind]())
    torch.manual_seed(2)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn_like(parameter) * 0.05
    model.save_pretrained(folder)
    return folder


def merged_by_peft(adapters: list[Path], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    model: Any = base_model(dtype)
    for adapter in adapters:
        model = peft.PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return dict(model.state_dict())


def merge_here(
    tmp_path: Path, adapters: list[Path], dtype: torch.dtype
) -> tuple[Any, dict[str, torch.Tensor]]:
    base_model(dtype).save_pretrained(tmp_path / "base")
    target = tmp_path / "merged"
    target.mkdir()
    merged = merge(tmp_path / "base", [(a.name, a, 1.0) for a in adapters], target)
    return merged, dict(LlamaForCausalLM.from_pretrained(target, dtype=dtype).state_dict())


def test_every_layer_type_that_is_offered_is_compared_here() -> None:
    assert set(CONFIGS) >= LAYER_TYPES


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("kind", CONFIGS)
def test_a_tuner_merges_bit_for_bit_as_peft_does(tmp_path: Path, kind: str, dtype: torch.dtype) -> None:
    adapter = make_adapter(tmp_path / "adapter", kind)
    merged, found = merge_here(tmp_path, [adapter], dtype)
    expected = merged_by_peft([adapter], dtype)
    untouched = base_model(dtype).state_dict()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    assert any(not torch.equal(expected[name], untouched[name]) for name in expected)
    assert verify_merge(merged, MergeOptions(), WriteHooks()).passed


def test_tuners_of_different_types_merge_one_after_another(tmp_path: Path) -> None:
    adapters = [make_adapter(tmp_path / kind, kind) for kind in ("DORA", "LOHA", "LORA_TOKENS")]
    merged, found = merge_here(tmp_path, adapters, torch.float16)
    expected = merged_by_peft(adapters, torch.float16)
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    assert verify_merge(merged, MergeOptions(), WriteHooks()).passed
    # 9 modules: DoRA has A, B and a magnitude of each, LoHa four factors, LoRA two and the rows of one embedding
    assert [account.tensors for account in merged.accounts] == [27, 36, 19]


def test_a_wrong_layer_merge_does_not_pass_verification(tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "adapter", "DORA")
    merged, _ = merge_here(tmp_path, [adapter], torch.float16)
    header = read_weights(tmp_path / "merged")["model.layers.1.self_attn.v_proj.weight"]
    with header.path.open("r+b") as file:
        file.seek(header.offset)
        file.write(torch.tensor([3.5], dtype=torch.float16).numpy().tobytes())
    with pytest.raises(VerificationFailed, match=r"v_proj.*SHA-256"):
        verify_merge(merged, MergeOptions(), WriteHooks())


def test_a_tuner_for_other_sizes_is_refused_by_module(tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "adapter", "LOHA")
    config = base_model(torch.float32).config
    config.intermediate_size = 96
    LlamaForCausalLM(config).save_pretrained(tmp_path / "other")
    (tmp_path / "merged").mkdir()
    with pytest.raises(AdapterMismatch, match=r"down_proj.*\[48, 96\]"):
        merge(tmp_path / "other", [("a", adapter, 1.0)], tmp_path / "merged")


@pytest.mark.parametrize(
    ("kind", "targets"), [("Vera", ["down_proj", "q_proj"]), ("RandLora", ["q_proj"])], ids=str
)
def test_projections_that_would_be_drawn_anew_are_refused(
    tmp_path: Path, kind: str, targets: list[str]
) -> None:
    """The drawn numbers depend on the sizes of all modules together, and on the machine."""
    config = getattr(peft, f"{kind}Config")(r=4, target_modules=targets, save_projection=False)
    peft.get_peft_model(base_model(torch.float32), config).save_pretrained(tmp_path / "adapter")
    with pytest.raises(
        UnsupportedAdapter, match=f"save_projection = false and changes {', '.join(targets)}:"
    ):
        read_adapter(tmp_path / "adapter")


def test_shared_projections_that_are_missing_are_refused(tmp_path: Path) -> None:
    path = make_adapter(tmp_path / "adapter", "VERA") / "adapter_model.safetensors"
    save_file({key: t for key, t in load_file(path).items() if key != "base_model.vera_B"}, path)
    with pytest.raises(IncompleteAdapter, match="holds 1 of vera_A, vera_B"):
        read_adapter(tmp_path / "adapter")


@pytest.mark.parametrize("kind", ["PROMPT_TUNING", "XLORA", "QUANTUM"])
def test_a_type_that_cannot_be_merged_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    adapter = make_adapter(tmp_path / "adapter", "DORA")
    config = json.loads((adapter / "adapter_config.json").read_text()) | {"peft_type": kind}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedAdapter, match=kind):
        read_adapter(adapter)


def test_a_scale_for_a_tuner_other_than_lora_is_refused(tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "adapter", "IA3")
    base_model(torch.float16).save_pretrained(tmp_path / "base")
    (tmp_path / "merged").mkdir()
    with pytest.raises(UnsupportedAdapter, match=r"IA3.*scale 0.5"):
        merge(tmp_path / "base", [("a", adapter, 0.5)], tmp_path / "merged")
