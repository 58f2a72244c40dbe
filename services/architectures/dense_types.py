"""Table of dense model types that have no family: they are merged and converted within Hugging Face's layout.

A test compares each row with transformers: class, names of embedding and head, defaults, and that the class stores its
tensors under the names of its parameters, up to the prefixes that are renamed here.
"""

from collections.abc import Mapping
from types import MappingProxyType

from services.architectures.families import FAMILIES
from services.architectures.family import INV_FREQ, ModelClass
from services.architectures.mixtures import MIXTURES

_LAYER_NORM = {"rms_norm_eps": "layer_norm_eps"}
_NEOX = ModelClass(
    architecture="GPTNeoXForCausalLM", embeddings="gpt_neox.embed_in.weight",
    keys=_LAYER_NORM, renames=(("embed_out.", "lm_head."),),
    config_defaults={"rms_norm_eps": 1e-5, "max_position_embeddings": 2048},
    dropped=INV_FREQ + r"|gpt_neox\.layers\.[0-9]+\.attention\.(bias|masked_bias)",
)  # fmt: skip

DENSE_TYPES: Mapping[str, ModelClass] = MappingProxyType({
    "gpt_neox": _NEOX,
    "olmo2": ModelClass(architecture="Olmo2ForCausalLM", config_defaults={"rms_norm_eps": 1e-5}),
    "granite": ModelClass(architecture="GraniteForCausalLM"),
    "smollm3": ModelClass(
        architecture="SmolLM3ForCausalLM",
        config_defaults={"num_key_value_heads": 4, "max_position_embeddings": 32768, "tie_word_embeddings": True},
    ),
    "starcoder2": ModelClass(
        architecture="Starcoder2ForCausalLM", keys={"rms_norm_eps": "norm_epsilon"},
        config_defaults={
            "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "max_position_embeddings": 4096, "tie_word_embeddings": True,
        },
    ),
})  # fmt: skip
"""Classes by the `model_type` of `config.json`."""

_CLASSES = (*FAMILIES.values(), *DENSE_TYPES.values())

TOKEN_MODULES = frozenset(
    name.split(".")[-2] for found in _CLASSES for name in (found.embeddings, found.head)
)
"""Last parts of the names of modules with one row per token: embed_tokens, lm_head, …"""


def class_of(model_type: str) -> ModelClass | None:
    """Returns the family, dense type or mixture of experts of a model type, None if it is not supported."""
    return FAMILIES.get(model_type) or DENSE_TYPES.get(model_type) or MIXTURES.get(model_type)
