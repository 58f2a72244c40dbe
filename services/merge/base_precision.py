"""Precision of a base: as it is, or as an adapter that was trained on a 4-bit base (QLoRA) has seen it.

bitsandbytes quantizes the weights that transformers makes linear modules of, except the head and what is tied. The choice is
transformers' own: its class is built without memory and its rules are asked.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from torch import nn
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module

from services.architectures.checkpoint import Checkpoint
from services.architectures.four_bit import FourBit
from services.architectures.quantized import check_roundable
from services.checkpoints.four_bit import bitsandbytes
from services.checkpoints.model_check import empty_model

BasePrecision = Literal["original", "dequantized"]


def at_precision(base: Checkpoint, precision: BasePrecision) -> Checkpoint:
    """Returns the base with the weights that a merge starts from.

    A base that is stored in 4 bits has them already: the others in its files were not quantized.

    Raises:
        UnsupportedOption: bitsandbytes is needed and not installed, or the base is a mixture of experts.
    """
    if precision == "original":
        return base
    bitsandbytes()
    check_roundable(base.config.model_class, base.folder.name)
    if rounded_weights(base):
        return base
    found = quantized_weights(base)
    tensors = {
        name: replace(source, four_bit=found[name]) if name in found else source
        for name, source in base.tensors.items()
    }
    return replace(base, tensors=tensors)


def rounded_weights(base: Checkpoint) -> list[str]:
    """Returns the names of the weights that are in 4 bits, or rounded to them."""
    return [name for name, source in base.tensors.items() if source.four_bit is not None]


def quantized_weights(base: Checkpoint) -> Mapping[str, FourBit]:
    """Returns the weights that `from_pretrained` of transformers would quantize with load_in_4bit, by their names in the files."""
    model: Any = empty_model(base)
    kept = HfQuantizer.get_modules_to_not_convert(model, None, model._keep_in_fp32_modules)
    modules = {
        f"{path}.weight": FourBit(transposed=isinstance(module, Conv1D))
        for path, module in model.named_modules()
        if (isinstance(module, Conv1D) or type(module) is nn.Linear) and should_convert_module(path, kept)
    }
    names = {name: base.config.model_class.module_name(name) for name in base.tensors}
    return {name: modules[module] for name, module in names.items() if module in modules}
