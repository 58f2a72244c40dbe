"""Norms of the changes by adapters: compared with hand-made tensors, and torch's norm of PEFT's merged minus the base's weights."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from services.adapters.adapter import read_adapter
from services.adapters.lora_tensors import LoraPair
from services.architectures.checkpoint_reader import read_checkpoint
from services.checkpoints.tensor_reader import TensorReader
from services.files.safetensors_header import read_safetensors_header
from services.merge import ScaledAdapter
from services.verify.norms import ChangeNorms, change_norms, common_rows, nothing_changed, pair_square
from tests.reference.peft_merge import (
    PROJECTIONS,
    State,
    make_adapter,
    peft_merged,
    random_model,
    save_model,
    write_tokenizer,
)

pytestmark = [
    # PEFT tells trainers about defaults and reads a property that transformers has renamed
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

EMBEDDINGS = ["embed_tokens", "lm_head"]
KINDS = {
    **{name: name for name in (*PROJECTIONS, *EMBEDDINGS)},
    "input_layernorm": "norms", "post_attention_layernorm": "norms", "norm": "norms",
}  # fmt: skip


def measured(base: Path, adapters: Sequence[Path], scales: Sequence[float] = ()) -> list[ChangeNorms]:
    scaled = [
        ScaledAdapter(read_adapter(path), scale)
        for path, scale in zip(adapters, scales or [1.0] * len(adapters), strict=True)
    ]
    with TensorReader() as reader:
        return change_norms(reader, read_checkpoint(base), scaled)


def differences(before: State, after: State) -> dict[str, float]:
    """Torch's norm of after minus before by kind of module, over the rows that both have."""
    squares: dict[str, float] = {}
    for name, new in after.items():
        old = before[name]
        difference = torch.linalg.norm(new[: len(old)].double() - old.double())
        if difference:
            kind = KINDS[name.split(".")[-2]]
            squares[kind] = squares.get(kind, 0.0) + float(difference) ** 2
    return {kind: square**0.5 for kind, square in squares.items()}


def untouched() -> State:
    return {name: tensor.clone() for name, tensor in random_model(torch.float32).state_dict().items()}


# ---- by hand ------------------------------------------------------------------------------------------


def test_the_norm_of_a_pair_is_that_of_its_product(tmp_path: Path) -> None:
    """B·A = [[3, 0], [0, 4]] by hand: norm 5; with alpha / r = 2 and the scale -0.5 it is 5 again."""
    halves = {"a": torch.tensor([[1.0, 0.0], [0.0, 2.0]]), "b": torch.tensor([[3.0, 0.0], [0.0, 2.0]])}
    save_file(halves, tmp_path / "pair.safetensors")
    headers = read_safetensors_header(tmp_path / "pair.safetensors")
    pair = LoraPair("module", headers["a"], headers["b"], 2, 2.0)
    with TensorReader() as reader:
        assert pair_square(reader, pair, -0.5) == 25.0


def test_rows_are_paired_however_the_two_sides_are_cut() -> None:
    rows = torch.arange(22).view(11, 2)
    pairs = list(common_rows(rows.split([4, 3, 4]), rows.split([5, 6]), most_elements=6))
    assert torch.equal(torch.cat([old for old, _ in pairs]), rows)
    assert torch.equal(torch.cat([new for _, new in pairs]), rows)
    assert max(len(old) for old, _ in pairs) == 3


def test_rows_of_one_side_alone_are_left_out() -> None:
    pairs = list(common_rows([torch.zeros(2, 3)], [torch.ones(5, 3)]))
    assert [(len(old), len(new)) for old, new in pairs] == [(2, 2)]


# ---- against PEFT -------------------------------------------------------------------------------------

OPTIONS: dict[str, dict[str, Any]] = {
    "projections": {},
    "rslora": {"use_rslora": True},
    "patterns": {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"v_proj": 40}},
    "embedding": {"target_modules": ["embed_tokens", "lm_head", "k_proj"]},
    "saved": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "input_layernorm"]},
    "trained tokens": {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [3, 9]}},
    "dora": {"use_dora": True, "target_modules": ["o_proj", "down_proj"]},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_norms_are_those_of_pefts_merge_minus_the_base(tmp_path: Path, options: dict[str, Any]) -> None:
    base = save_model(random_model(torch.float32), tmp_path / "base")
    adapter = make_adapter(tmp_path / "adapter", seed=3, **options)

    found = measured(base, [adapter])[0]

    expected = differences(untouched(), peft_merged(random_model(torch.float32), [adapter]))
    assert dict(found.by_kind) == pytest.approx(expected, rel=1e-4)
    assert found.rows_added == 0
    assert not found.all_zero


def test_another_tuner_is_measured_by_merging_it(tmp_path: Path) -> None:
    base = save_model(random_model(torch.float32), tmp_path / "base")
    model = peft.get_peft_model(
        random_model(torch.float32), peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[])
    )
    for number, parameter in enumerate(p for p in model.parameters() if p.requires_grad):
        parameter.data += 0.1 * (number + 1)
    model.save_pretrained(tmp_path / "adapter")

    found = measured(base, [tmp_path / "adapter"])[0]

    state = untouched()
    squares = [
        float(torch.linalg.norm(state[f"model.layers.{i}.self_attn.k_proj.weight"] * 0.1 * (i + 1))) ** 2
        for i in range(3)
    ]
    assert dict(found.by_kind) == pytest.approx({"k_proj": sum(squares) ** 0.5}, rel=1e-4)


def test_what_a_second_adapter_changes_is_counted_from_the_first_one_on(tmp_path: Path) -> None:
    """The second replaces embeddings that the first has replaced and extended: 113 rows are common, one is added."""
    base = save_model(random_model(torch.float32), tmp_path / "base")
    first = make_adapter(tmp_path / "first", seed=4, vocabulary=113, modules_to_save=EMBEDDINGS)
    second = make_adapter(tmp_path / "second", seed=5, vocabulary=114, modules_to_save=EMBEDDINGS, r=6)
    write_tokenizer(first, 113)
    write_tokenizer(second, 114)

    found = measured(base, [first, second], [0.5, 2.0])

    one = peft_merged(random_model(torch.float32), [first], scales=[0.5])
    two = peft_merged(random_model(torch.float32), [first, second], scales=[0.5, 2.0])
    assert dict(found[0].by_kind) == pytest.approx(differences(untouched(), one), rel=1e-4)
    assert dict(found[1].by_kind) == pytest.approx(differences(one, two), rel=1e-4)
    assert [norms.rows_added for norms in found] == [12, 1]


def test_an_adapter_whose_every_change_is_zero_is_told(tmp_path: Path) -> None:
    """B is zero where training has not begun."""
    base = save_model(random_model(torch.float16), tmp_path / "base")
    adapters = [make_adapter(tmp_path / name, seed=6) for name in ("trained", "untrained")]
    path = adapters[1] / "adapter_model.safetensors"
    state = load_file(path)
    save_file({key: t * 0 if "lora_B" in key else t for key, t in state.items()}, path)
    scaled = [ScaledAdapter(read_adapter(adapter)) for adapter in adapters]

    found = measured(base, adapters)

    assert dict(found[1].by_kind) == dict.fromkeys(sorted(PROJECTIONS), 0.0)
    assert [sentence.split(":")[0] for sentence in nothing_changed(scaled, found)] == [
        "Adapter untrained changes nothing"
    ]


def test_the_norms_are_plain_json(tmp_path: Path) -> None:
    base = save_model(random_model(torch.float16), tmp_path / "base")
    found = measured(base, [make_adapter(tmp_path / "adapter", seed=7)])[0]
    assert json.loads(json.dumps(dict(found.by_kind))).keys() == set(PROJECTIONS)
