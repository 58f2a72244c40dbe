"""Merging on another device than the CPU: what goes there, what comes back, and that no digit is given away.

Without a GPU a stand-in shows the way: tensors that were moved "there" refuse to be mixed with those that were not, as CUDA's do.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from services.adapters.adapter import read_adapter
from services.architectures.checkpoint_reader import read_checkpoint
from services.checkpoints.tensor_reader import TensorReader
from services.checkpoints.write_hooks import WriteHooks
from services.errors import UnsupportedOption
from services.generate import resolve_device
from services.merge import MergeOptions, merge
from services.merge.delta import Change, changed_blocks
from services.merge.devices import device_name, exact_products
from services.verify import verify_merge
from tests.reference.peft_merge import make_adapter, peft_merged, random_model, save_model

CUDA = torch.device("cuda", 0)


class There(torch.Tensor):
    """A tensor on the other device: it comes back by `cpu()` and mixes with no tensor of this one."""

    products = 0

    @classmethod
    def __torch_function__(
        cls,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is torch.Tensor.cpu:
            return args[0].as_subclass(torch.Tensor)
        if any(type(argument) is torch.Tensor for argument in args):
            raise RuntimeError("Expected all tensors to be on the same device")
        There.products += func.__name__ in ("__matmul__", "matmul")
        return super().__torch_function__(func, types, args, kwargs or {})


class PretendGpu(TorchFunctionMode):
    """`tensor.to(cuda)` makes a copy that is There."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.Tensor.to and len(args) > 1 and args[1] == CUDA:
            return args[0].clone().as_subclass(There)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("target", ["q_proj", "embed_tokens"])
@pytest.mark.parametrize("once", [False, True])
def test_products_and_sums_are_made_there_and_the_result_comes_back(
    tmp_path: Path, target: str, once: bool
) -> None:
    adapter = read_adapter(make_adapter(tmp_path / "adapter", seed=1, target_modules=[target]))
    name = sorted(adapter.pairs)[0]
    weight = random_model(torch.float16).state_dict()[name]
    changes = [change for scale in (1.0, 0.5) if (change := Change.by(adapter, scale, name))]
    There.products = 0
    with TensorReader() as reader:
        here = torch.cat(list(changed_blocks(reader, weight, changes, once=once)))
        with PretendGpu():
            blocks = list(changed_blocks(reader, weight, changes, once=once, device=CUDA))
    assert {type(block) for block in blocks} == {torch.Tensor}
    assert There.products == 2
    assert torch.equal(torch.cat(blocks), here)


def test_rows_of_trained_tokens_and_a_pair_meet_on_the_cpu(tmp_path: Path) -> None:
    options = {"target_modules": ["embed_tokens"]}
    pairs = read_adapter(make_adapter(tmp_path / "pairs", seed=1, **options))
    rows = read_adapter(
        make_adapter(
            tmp_path / "rows",
            seed=2,
            target_modules=["q_proj"],
            trainable_token_indices={"embed_tokens": [3]},
        )
    )
    name = "model.embed_tokens.weight"
    weight = random_model(torch.float16).state_dict()[name]
    changes = [change for adapter in (rows, pairs) if (change := Change.by(adapter, 1.0, name))]
    with TensorReader() as reader:
        here = torch.cat(list(changed_blocks(reader, weight, changes, once=False)))
        with PretendGpu():
            found = torch.cat(list(changed_blocks(reader, weight, changes, once=False, device=CUDA)))
    assert torch.equal(found, here)


@pytest.mark.parametrize("chosen", ["none", "tf32", "ieee"])
def test_float32_keeps_its_digits_while_a_gpu_computes_and_the_setting_comes_back(chosen: str) -> None:
    settings = torch.backends.cuda.matmul
    before = settings.fp32_precision
    try:
        settings.fp32_precision = chosen
        with pytest.raises(InterruptedError), exact_products(CUDA):
            assert settings.fp32_precision == "ieee"
            raise InterruptedError
        assert settings.fp32_precision == chosen
        with exact_products(torch.device("cpu")):
            assert settings.fp32_precision == chosen
    finally:
        settings.fp32_precision = before


def test_a_merge_says_what_computed_it(tmp_path: Path) -> None:
    base = save_model(random_model(torch.float16), tmp_path / "base")
    adapter = make_adapter(tmp_path / "adapter", seed=1)
    (tmp_path / "new").mkdir()
    merged = merge(base, [("adapter", adapter, 1.0)], tmp_path / "new", options=MergeOptions(device="cpu"))
    assert merged.device == "cpu"


def test_a_gpu_that_is_not_there_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UnsupportedOption, match="cuda:1"):
        resolve_device("cuda:1")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_a_gpu_merges_to_within_one_rounding_of_peft_and_passes_the_check(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    base = save_model(random_model(dtype), tmp_path / "base")
    options = MergeOptions(device="cuda:0")
    adapters = [
        make_adapter(tmp_path / "first", seed=1),
        make_adapter(tmp_path / "second", seed=2, target_modules=["q_proj", "embed_tokens", "lm_head"]),
    ]
    (tmp_path / "new").mkdir()
    merged = merge(base, [(a.name, a, 1.0) for a in adapters], tmp_path / "new", options=options)
    assert verify_merge(merged, options, WriteHooks()).passed
    assert merged.device == device_name(CUDA)
    assert merged.device.startswith("cuda:0 (")
    expected = peft_merged(random_model(dtype), adapters)
    with TensorReader() as reader:
        for name, source in read_checkpoint(tmp_path / "new").tensors.items():
            found, wanted = reader.load(source).double(), expected[name].double()
            unit = torch.finfo(dtype).eps * wanted.abs().clamp(min=1e-3)
            assert float(((found - wanted).abs() / unit).max()) <= 4, name
