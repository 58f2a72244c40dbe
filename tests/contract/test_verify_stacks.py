"""Verification of 200 random stacks: no right merge is refused, and on some of them every fault is."""

import json
import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from services.checkpoints.write_hooks import WriteHooks
from services.merge import Merged, MergeOptions, merge
from services.verify import expected_merge, verify_merge, verify_model
from tests.reference.peft_merge import write_tokenizer

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
SHAPES = {
    "self_attn.q_proj": (16, 16),
    "self_attn.v_proj": (8, 16),
    "mlp.up_proj": (40, 16),
    "mlp.down_proj": (16, 40),
}
ROWS = 101
Stack = list[tuple[str, Path, float]]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model of one layer in each dtype."""
    root = tmp_path_factory.mktemp("bases")
    torch.manual_seed(1)
    config = LlamaConfig(
        hidden_size=16, intermediate_size=40, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=ROWS, max_position_embeddings=64, initializer_range=0.1,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    for code, dtype in DTYPES.items():
        folder = root / code
        folder.mkdir()
        model.config.dtype = dtype
        model.config.save_pretrained(folder)
        state = {name: tensor.to(dtype).contiguous() for name, tensor in model.state_dict().items()}
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        write_tokenizer(folder, ROWS)
    return {code: root / code for code in DTYPES}


def save_adapter(folder: Path, draw: random.Random, *, strength: float, replaces: bool) -> Path:
    """A LoRA adapter whose changes are `strength` times as large as the base's weights."""
    folder.mkdir()
    rank, alpha = draw.choice([1, 4, 16]), draw.choice([8, 32])
    generator = torch.Generator().manual_seed(draw.randrange(10**6))
    dtype = draw.choice(list(DTYPES.values()))
    modules = draw.sample(list(SHAPES), draw.randint(1, 4))
    size = (0.1 * strength * rank**0.5 / alpha) ** 0.5
    state = {}
    for module in modules:
        rows, columns = SHAPES[module]
        for half, shape in (("A", (rank, columns)), ("B", (rows, rank))):
            key = f"base_model.model.model.layers.0.{module}.lora_{half}.weight"
            state[key] = (torch.randn(shape, generator=generator) * size).to(dtype)
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": alpha}
    config["target_modules"] = [module.split(".")[1] for module in modules]
    if replaces:
        config["modules_to_save"] = ["lm_head"]
        state["base_model.model.lm_head.weight"] = torch.randn(ROWS, 16, generator=generator).to(dtype) / 10
    save_file(state, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@dataclass(frozen=True, kw_only=True)
class RandomMerge:
    """A random stack of one to four adapters, from 0.003 to 20 times as strong as the base, and its merge."""

    base: Path
    folder: Path
    stack: Stack
    options: MergeOptions
    draw: random.Random
    result: Merged

    def passes(self, target: Path, *, known: bool) -> bool:
        """Returns the verdict on a model that is said to be this merge; `known` says that its way of rounding is known."""
        claim = expected_merge(self.base, self.stack, "huggingface")
        once = self.options.rounding == "once" if known else None
        return verify_model(target, replace(claim, once=once), WriteHooks()).passed

    def of(self, name: str, stack: Stack) -> Path:
        """Returns the merge of another stack."""
        target = self.folder / name
        target.mkdir()
        merge(self.base, stack, target, options=self.options)
        return target

    def with_state(self, name: str, state: dict[str, torch.Tensor]) -> Path:
        """Returns the merge with other tensors."""
        target = Path(shutil.copytree(self.folder / "merged", self.folder / name))
        save_file(state, target / "model.safetensors", metadata={"format": "pt"})
        return target


def random_merge(bases: dict[str, Path], folder: Path, seed: int, *, replacing: bool = False) -> RandomMerge:
    draw = random.Random(seed)
    base = bases[draw.choice(list(DTYPES))]
    count = draw.randint(2 if replacing else 1, 4)
    highest = draw.choice([0.0, 1.3])
    stack: Stack = []
    for number in range(count):
        strength = 10 ** draw.uniform(highest - 2.5 if highest == 0 else 0.0, highest)
        path = save_adapter(
            folder / f"a{number}", draw, strength=strength, replaces=replacing or draw.random() < 0.3
        )
        stack.append((path.name, path, draw.choice([1.0, 0.5, -1.0, 2.0])))
    options = MergeOptions(rounding=draw.choice(["per_adapter", "once"]))
    (folder / "merged").mkdir()
    result = merge(base, stack, folder / "merged", options=options)
    return RandomMerge(base=base, folder=folder, stack=stack, options=options, draw=draw, result=result)


@pytest.mark.parametrize("tens", range(20))
def test_no_right_merge_is_refused(bases: dict[str, Path], tmp_path: Path, tens: int) -> None:
    for number in range(10):
        folder = tmp_path / str(number)
        folder.mkdir()
        made = random_merge(bases, folder, 10 * tens + number)
        report = verify_merge(made.result, made.options, WriteHooks())  # raises if it is refused
        assert report.logits is not None and report.logits.passed
        if number == 0:
            assert made.passes(folder / "merged", known=False)


@pytest.mark.parametrize("seed", range(8))
def test_every_fault_is_refused(bases: dict[str, Path], tmp_path: Path, seed: int) -> None:
    made = random_merge(bases, tmp_path, 1000 + seed, replacing=True)
    name, path, scale = made.stack[0]
    weaker = save_without_one_module(path, tmp_path / "weaker")
    state = load_file(tmp_path / "merged" / "model.safetensors")
    row = made.draw.randrange(15)
    state["model.layers.0.mlp.down_proj.weight"][row] = state["model.layers.0.mlp.down_proj.weight"][row + 1]
    faults = {
        "swapped order": made.of("swapped", made.stack[::-1]),  # both replace the head
        "a scale wrong by 1 %": made.of("scaled", [(name, path, 1.01 * scale), *made.stack[1:]]),
        "one module left out": made.of("less", [(name, weaker, scale), *made.stack[1:]]),
        "one changed row": made.with_state("row", state),
    }
    refused = {
        fault: [made.passes(target, known=known) for known in (True, False)]
        for fault, target in faults.items()
    }
    assert refused == {fault: [False, False] for fault in faults}


def save_without_one_module(adapter: Path, folder: Path) -> Path:
    """A copy of an adapter in which the change of its first module is zero."""
    shutil.copytree(adapter, folder)
    state = load_file(folder / "adapter_model.safetensors")
    first: Sequence[str] = [key for key in state if "lora_B" in key][:1]
    save_file(
        {key: tensor * 0 if key in first else tensor for key, tensor in state.items()},
        folder / "adapter_model.safetensors",
    )
    return folder
