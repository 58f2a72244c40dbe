"""Tensors of a GGUF file: names, encodings and the order of rows."""

import gguf

from services.architectures.config import ModelConfig
from services.architectures.expected_tensors import row_of
from services.architectures.gguf_output import gguf_encodings
from services.architectures.gguf_support import support_of
from services.architectures.key_map import rotary_heads
from services.architectures.output_spec import OutputSpec
from services.checkpoints.write_ledger import TensorPlan

MODEL_FILE = "model.gguf"


ARCHITECTURES = {name: architecture for architecture, name in gguf.MODEL_ARCH_NAMES.items()}


def architecture_of(config: ModelConfig) -> str:
    """Returns `general.architecture` of a model that `check_output` has accepted."""
    assert config.family is not None and config.family.gguf is not None
    return config.family.gguf


def gguf_plans(output: OutputSpec) -> dict[str, TensorPlan]:
    """Returns each tensor as GGUF stores it, by its Hugging Face name."""
    config = output.config
    names = gguf.get_tensor_name_map(ARCHITECTURES[architecture_of(config)], config.num_hidden_layers)
    encodings = gguf_encodings(output)
    plans = {}
    for name, (_, shape) in output.tensors.items():
        text = config.model_class.text_name(name)
        stored = None if text is None else names.get_name(text, try_suffixes=(".weight", ".bias"))
        assert stored is not None, f"{name} is in the key map and not in GGUF's"
        plans[name] = TensorPlan(stored, encodings[name], shape)
    return plans


def offset_of(output: OutputSpec, name: str) -> float:
    """Returns the number that GGUF adds to a stored tensor: one for norms that are offsets from one."""
    facts = support_of(output.config)
    return 1.0 if facts is not None and facts.norm_offset and name.endswith("norm.weight") else 0.0


def interleaved_heads(output: OutputSpec, name: str) -> int:
    """Returns the number of heads by which the rows of a tensor are interleaved; 0 if they are not."""
    return rotary_heads(row_of(output.config, name), output.config)
