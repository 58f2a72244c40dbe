"""Tensors of a GGUF file: names, encodings and the order of rows."""

import gguf

from services.architectures.expected_tensors import row_of
from services.architectures.gguf_output import gguf_encodings
from services.architectures.key_map import rotary_heads
from services.architectures.output_spec import OutputSpec
from services.checkpoints.write_ledger import TensorPlan

MODEL_FILE = "model.gguf"


def gguf_plans(output: OutputSpec) -> dict[str, TensorPlan]:
    """Returns each tensor as GGUF stores it, by its Hugging Face name."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, output.config.num_hidden_layers)
    encodings = gguf_encodings(output)
    plans = {}
    for name, (_, shape) in output.tensors.items():
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert stored is not None, f"{name} is in the key map and not in GGUF's"
        plans[name] = TensorPlan(stored, encodings[name], shape)
    return plans


def interleaved_heads(output: OutputSpec, name: str) -> int:
    """Returns the number of heads by which the rows of a tensor are interleaved; 0 if they are not."""
    return rotary_heads(row_of(output.config, name), output.config)
