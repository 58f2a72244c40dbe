"""Table of the model families, by `model_type`."""

from collections.abc import Mapping

from services.architectures.families.gemma2 import GEMMA2
from services.architectures.families.gemma3 import GEMMA3, GEMMA3_MULTIMODAL
from services.architectures.families.llama import LLAMA
from services.architectures.families.mistral import MISTRAL
from services.architectures.families.phi3 import PHI3
from services.architectures.families.qwen2 import QWEN2
from services.architectures.families.qwen3 import QWEN3
from services.architectures.family import Family

FAMILIES: Mapping[str, Family] = {
    model_type: family
    for family in (LLAMA, MISTRAL, QWEN2, QWEN3, PHI3, GEMMA2, GEMMA3, GEMMA3_MULTIMODAL)
    for model_type in family.model_types
}
"""Families by the `model_type` of `config.json`."""


def family_of(model_type: str) -> Family | None:
    """Returns the family of a model type, None if there is none."""
    return FAMILIES.get(model_type)
