"""Mixtures of experts: checkpoints hold a tensor per expert and projection, transformers' class one of three dimensions for all.

Shapes and order are those of transformers' own conversion (`conversion_mapping.py`, mixtral and qwen2_moe): the class's
`mlp.experts.gate_up_proj` (experts, 2 * width, hidden) holds each expert's gate above its up projection, `mlp.experts.down_proj` is
(experts, hidden, width).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from services.architectures.family import ModelClass
from services.architectures.key_map import Shape
from services.errors import UnsupportedFormat
from services.files.json_file import require

GATE_UP, DOWN = "gate_up_proj", "down_proj"
"""Names of the class's tensors of all experts, below `mlp.experts`."""

EXPERTS = re.compile(r"(?P<experts>.+\.mlp\.experts)\.(?P<parameter>gate_up_proj|down_proj)")

MAX_EXPERTS = 65536

COUNT_KEYS = ("num_experts", "num_local_experts")


@dataclass(frozen=True, slots=True)
class ExpertRows:
    """Place of one tensor of a checkpoint in the class's tensor of all experts: the expert, and its rows there."""

    parameter: str
    expert: int
    rows: slice


@dataclass(frozen=True, kw_only=True)
class MixtureClass(ModelClass):
    """Mixture of experts whose layers are all sparse.

    Attributes:
        block: Name of a layer's sparse block in a checkpoint's file; the class calls it `mlp`.
        gate: Name of an expert's gate projection in a checkpoint's file.
        up: Name of its up projection there.
        down: Name of its down projection there.
        width_key: Key in `config.json` of the width of an expert.
    """

    block: str = "mlp"
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"
    width_key: str

    def module_name(self, name: str) -> str:
        """Returns the class's name of a tensor; an expert's has its number and the file's name for the projection."""
        return super().module_name(name).replace(f".{self.block}.", ".mlp.", 1)

    def file_name(self, module: str, *, renamed: bool) -> str:
        """Returns the name that a tensor of the class has in a checkpoint's file."""
        return super().file_name(module, renamed=renamed).replace(".mlp.", f".{self.block}.", 1)

    def sizes(self, source: Mapping[str, Any]) -> tuple[int, int, int]:
        """Returns the number of experts, the hidden size and the width of an expert.

        Raises:
            IncompleteCheckpoint: A number is missing.
            UnsupportedFormat: Some layers are not sparse, or there are too many experts.
        """
        if source.get("mlp_only_layers") or source.get("decoder_sparse_step") not in (None, 1):
            raise UnsupportedFormat(
                "config.json says that some layers have no experts (mlp_only_layers, decoder_sparse_step); only models whose layers "
                "are all alike are supported.",
                "Merge the adapter with PEFT.",
            )
        values = dict(source)
        key = next((key for key in COUNT_KEYS if key in values), COUNT_KEYS[0])
        count = require(values, key, int, file="config.json")
        if count > MAX_EXPERTS:
            raise UnsupportedFormat(
                f"config.json says {key} = {count}; at most {MAX_EXPERTS} are supported.",
                "Check config.json.",
            )
        hidden = require(values, "hidden_size", int, file="config.json")
        return count, hidden, require(values, self.width_key, int, file="config.json")

    def is_parameter(self, module_name: str) -> bool:
        """Returns True for a tensor that the class holds as a parameter, not as the weight of a linear module: experts and router."""
        return ".mlp.experts." in module_name or module_name.endswith(".mlp.gate.weight")

    def expert_shapes(self, source: Mapping[str, Any]) -> dict[str, Shape]:
        """Returns the shapes of the tensors of a layer's experts by their names below `experts`: `3.w1.weight`."""
        count, hidden, width = self.sizes(source)
        shapes = {self.gate: (width, hidden), self.up: (width, hidden), self.down: (hidden, width)}
        return {f"{expert}.{name}.weight": shape for expert in range(count) for name, shape in shapes.items()}

    def expert_rows(self, parameter: str, count: int, width: int) -> dict[str, ExpertRows]:
        """Returns the place of each expert's tensors in one of the class's tensors, by their names below `experts`."""
        parts = {self.gate: slice(0, width), self.up: slice(width, 2 * width)}
        if parameter == DOWN:
            parts = {self.down: slice(None)}
        return {
            f"{expert}.{name}.weight": ExpertRows(parameter, expert, rows)
            for expert in range(count)
            for name, rows in parts.items()
        }

    def expanded(self, tensors: Mapping[str, Shape]) -> dict[str, Shape]:
        """Returns the shapes of the class's tensors with those of all experts in parts, as a checkpoint has them."""
        found: dict[str, Shape] = {}
        for name, shape in tensors.items():
            match = EXPERTS.fullmatch(name)
            if match is None:
                found[name] = shape
                continue
            count, rows, columns = shape
            width = rows // 2 if match["parameter"] == GATE_UP else columns
            for part, place in self.expert_rows(match["parameter"], count, width).items():
                height = rows if match["parameter"] == DOWN else width
                assert place.parameter == match["parameter"]
                found[f"{match['experts']}.{part}"] = (height, columns)
        return found


MIXTURES: Mapping[str, MixtureClass] = MappingProxyType({
    "mixtral": MixtureClass(
        architecture="MixtralForCausalLM", block="block_sparse_moe", gate="w1", up="w3", down="w2",
        width_key="intermediate_size",
        config_defaults={
            "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "max_position_embeddings": 131072, "rope_theta": 1e6,
        },
    ),
    "qwen3_moe": MixtureClass(
        architecture="Qwen3MoeForCausalLM", width_key="moe_intermediate_size",
        config_defaults={"num_key_value_heads": 4, "max_position_embeddings": 32768},
    ),
})  # fmt: skip
"""Classes by the `model_type` of `config.json`; a test compares each with transformers."""
