"""Mixes of GGUF encodings by the names of llama-quantize: which encoding each matrix of a dense model gets.

A mix has one main encoding; matrices that matter more get a finer one, by their place in the model. Source: ggml-org/llama.cpp
`src/llama-quant.cpp` (llama_tensor_get_type_impl, tensor_type_fallback, tensor_requires_imatrix, llama_ftype_get_default_type)
and `tools/quantize/quantize.cpp` (QUANT_OPTIONS), without the rules for experts and for Falcon.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from services.architectures.config import ModelConfig
from services.architectures.key_map import Shape, kind_of
from services.files.tensors import BLOCKS


@dataclass(frozen=True, slots=True)
class Mix:
    """A mix: `encoding` is that of most matrices, `file_type` the value of `general.file_type` (llama.h, llama_ftype)."""

    encoding: str
    file_type: int


MIXES: Mapping[str, Mix] = {
    "Q4_0": Mix("Q4_0", 2), "Q4_1": Mix("Q4_1", 3), "Q8_0": Mix("Q8_0", 7), "Q5_0": Mix("Q5_0", 8), "Q5_1": Mix("Q5_1", 9),
    "Q2_K": Mix("Q2_K", 10), "Q3_K_S": Mix("Q3_K", 11), "Q3_K_M": Mix("Q3_K", 12), "Q3_K_L": Mix("Q3_K", 13),
    "Q4_K_S": Mix("Q4_K", 14), "Q4_K_M": Mix("Q4_K", 15), "Q5_K_S": Mix("Q5_K", 16), "Q5_K_M": Mix("Q5_K", 17),
    "Q6_K": Mix("Q6_K", 18), "IQ2_XXS": Mix("IQ2_XXS", 19), "IQ2_XS": Mix("IQ2_XS", 20), "Q2_K_S": Mix("Q2_K", 21),
    "IQ3_XS": Mix("IQ3_S", 22), "IQ3_XXS": Mix("IQ3_XXS", 23), "IQ1_S": Mix("IQ1_S", 24), "IQ4_NL": Mix("IQ4_NL", 25),
    "IQ3_S": Mix("IQ3_S", 26), "IQ3_M": Mix("IQ3_S", 27), "IQ2_S": Mix("IQ2_XS", 28), "IQ2_M": Mix("IQ2_S", 29),
    "IQ4_XS": Mix("IQ4_XS", 30), "IQ1_M": Mix("IQ1_M", 31),
}  # fmt: skip
"""Mixes by their names."""

ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}
"""Short names that llama-quantize takes for a mix."""

NEEDS_IMATRIX = frozenset(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS"))
"""Encodings that are useless without an importance matrix; the embedding and the head are excepted."""

FALLBACKS = {
    "Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0",
    **dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS"), "IQ4_NL"),
}  # fmt: skip
"""Encoding in blocks of 32 for rows that are not a whole number of blocks of 256."""

PARTS = {
    "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "qkv_proj": "attn_v", "o_proj": "attn_output",
    "gate_proj": "ffn_gate", "up_proj": "ffn_up", "gate_up_proj": "ffn_up", "down_proj": "ffn_down",
}  # fmt: skip
"""Parts of the model that the rules distinguish, by the module's name; a fused qkv counts as v."""


@dataclass(frozen=True, slots=True)
class Place:
    """Place of a matrix: its layer, the number of layers, query heads per key-value head, and an importance matrix or none."""

    layer: int
    layers: int
    heads_per_key: int
    has_imatrix: bool

    @property
    def grouped(self) -> bool:
        """True if four or more query heads share keys and values, which makes these small."""
        return self.heads_per_key >= 4

    @property
    def early(self) -> bool:
        """True in the first eighth of the layers."""
        return self.layer < self.layers // 8

    @property
    def middle(self) -> bool:
        """True between the first and the last eighth."""
        return self.layers // 8 <= self.layer < 7 * self.layers // 8

    @property
    def more_bits(self) -> bool:
        """True in the first and the last eighth of the layers and in every third one between."""
        eighth = self.layers // 8
        return self.early or self.layer >= 7 * self.layers // 8 or (self.layer - eighth) % 3 == 2


Rule = Callable[[Place], str | None]
"""Encoding of a matrix at a place, None for the main one."""


def _always(encoding: str) -> Rule:
    return lambda place: encoding


def _if_grouped(encoding: str, otherwise: str | None = None) -> Rule:
    return lambda place: encoding if place.grouped else otherwise


def _if_early(encoding: str) -> Rule:
    return lambda place: encoding if place.early else None


def _if_more_bits(place: Place) -> str | None:
    return "Q6_K" if place.more_bits else None


def _if_middle(encoding: str) -> Rule:
    return lambda place: encoding if place.middle else None


def _iq3_xxs_values(place: Place) -> str:
    return "Q4_K" if place.grouped else "IQ3_XXS" if place.has_imatrix else "IQ3_S"


def _iq3_xxs_down(place: Place) -> str | None:
    return None if place.has_imatrix else "Q4_K" if place.early else "Q3_K"


def _finer_if_early(encoding: str, *, with_imatrix: bool) -> Rule:
    return lambda place: encoding if place.early and place.has_imatrix == with_imatrix else None


RULES: Mapping[str, Mapping[str, Rule]] = {
    "attn_v": {
        "Q2_K": _if_grouped("Q4_K", "Q3_K"), "Q2_K_S": _if_grouped("Q4_K"), "IQ3_XXS": _iq3_xxs_values,
        "IQ3_XS": _if_grouped("Q4_K"), "IQ3_S": _if_grouped("Q4_K"), "IQ3_M": _always("Q4_K"),
        "Q3_K_M": lambda place: "Q5_K" if place.layer < 2 else "Q4_K", "Q3_K_L": _always("Q5_K"),
        "IQ4_NL": _if_grouped("Q5_K"), "IQ4_XS": _if_grouped("Q5_K"), "Q4_K_M": _if_more_bits, "Q5_K_M": _if_more_bits,
        "Q4_K_S": lambda place: "Q5_K" if place.layer < 4 else None,
        **dict.fromkeys(("IQ2_XXS", "IQ2_XS", "IQ1_S", "IQ1_M"), _if_grouped("Q4_K", "Q2_K")),
        **dict.fromkeys(("IQ2_S", "IQ2_M"), _if_grouped("Q4_K", "IQ3_S")),
    },
    "attn_q": {"IQ3_XS": _always("IQ3_XXS"), "IQ3_XXS": _always("IQ2_S")},
    "attn_k": {"IQ3_XS": _always("IQ3_XXS"), "IQ3_XXS": _always("IQ2_S")},
    "attn_output": {
        "Q2_K": _always("Q3_K"), "IQ3_XXS": _always("IQ3_S"), "Q3_K_M": _always("Q4_K"), "Q3_K_L": _always("Q5_K"),
        "IQ3_M": _always("Q4_K"), "IQ1_S": _always("IQ2_XXS"), "IQ1_M": _always("IQ2_XXS"), "IQ2_S": _always("IQ3_S"),
        "IQ2_M": _always("IQ3_S"),
    },
    "ffn_gate": {"IQ3_XS": _if_middle("IQ3_XXS")},
    "ffn_up": {"IQ3_XS": _if_middle("IQ3_XXS")},
    "ffn_down": {
        "Q2_K": _always("Q3_K"), "Q2_K_S": _if_early("Q4_K"), "IQ3_XXS": _iq3_xxs_down,
        "Q3_K_M": lambda place: "Q5_K" if place.layer < place.layers // 16 else "Q4_K", "IQ3_M": _if_early("Q4_K"),
        "Q3_K_L": _always("Q5_K"), "Q4_K_M": _if_more_bits, "Q5_K_M": _if_more_bits, "Q4_K_S": _if_early("Q5_K"),
        "IQ4_NL": _finer_if_early("Q5_K", with_imatrix=False), "IQ4_XS": _finer_if_early("Q5_K", with_imatrix=False),
        "Q4_0": _finer_if_early("Q4_1", with_imatrix=True), "Q5_0": _finer_if_early("Q5_1", with_imatrix=True),
        **dict.fromkeys(("IQ2_XXS", "IQ2_XS", "IQ1_S", "IQ1_M"), _if_early("Q2_K")),
        **dict.fromkeys(("IQ2_S", "IQ2_M"), _if_early("IQ3_S")),
    },
}  # fmt: skip
"""Rules by part and mix."""

EMBEDDINGS = {
    **dict.fromkeys(("IQ2_XXS", "IQ2_XS", "IQ1_S", "IQ1_M"), "Q2_K"),
    **dict.fromkeys(("IQ2_S", "IQ2_M", "IQ3_XXS"), "IQ3_S"),
}  # fmt: skip
"""Encoding of an untied embedding where it is not the main one, by mix."""

LOWEST = frozenset(("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ1_S", "IQ1_M"))
"""Mixes of about one and two bits, to which the rule for 70B models does not apply."""

COARSE_HEADS = LOWEST | {"IQ3_XXS"}
"""Mixes whose head is Q5_K instead of Q6_K."""


def mixed_encodings(
    config: ModelConfig, matrices: Mapping[str, Shape], mix_name: str, *, has_imatrix: bool
) -> dict[str, str]:
    """Returns the encoding that a mix gives each matrix, before rows that do not fit fall back."""
    model_class = config.model_class
    ends = {model_class.embeddings: "embedding", model_class.head: "head"}
    parts = {name: ends.get(model_class.text_name(name) or "") for name in matrices}
    tied = "head" not in parts.values()
    found = {}
    for name, shape in matrices.items():
        part = "head" if tied and parts[name] else parts[name]
        if part == "head":
            found[name] = _head_encoding(mix_name, shape)
        elif part == "embedding":
            found[name] = EMBEDDINGS.get(mix_name, MIXES[mix_name].encoding)
        else:
            found[name] = _layer_encoding(config, name, mix_name, has_imatrix=has_imatrix)
    return found


def _head_encoding(mix_name: str, shape: Shape) -> str:
    main = MIXES[mix_name].encoding
    if main == "Q8_0" or shape[-1] % BLOCKS[main][0]:
        return "Q8_0"
    return "Q5_K" if mix_name in COARSE_HEADS else "Q6_K"


def _layer_encoding(config: ModelConfig, name: str, mix_name: str, *, has_imatrix: bool) -> str:
    layers = config.num_hidden_layers
    place = Place(
        kind_of(name)[1] or 0, layers, config.num_attention_heads // config.num_key_value_heads, has_imatrix
    )
    part = PARTS.get(name.split(".")[-2], "")
    rule = RULES.get(part, {}).get(mix_name)
    encoding = (rule(place) if rule else None) or MIXES[mix_name].encoding
    if part == "attn_v" and _is_70b(config) and mix_name not in LOWEST and encoding in ("Q3_K", "Q4_K"):
        return "Q5_K"
    return encoding


def _is_70b(config: ModelConfig) -> bool:
    """Returns True for what llama.cpp takes for a 70B model: 80 layers, of LLaMA those with grouped heads only."""
    grouped = config.num_attention_heads != config.num_key_value_heads
    architecture = config.family.gguf if config.family else None
    return config.num_hidden_layers == 80 and (
        architecture == "qwen2" or (architecture == "llama" and grouped)
    )


def fitting_encoding(encoding: str, shape: Shape) -> str | None:
    """Returns the encoding that rows of this length can take instead of a mix's; None if they fit no blocks at all."""
    for candidate in (encoding, FALLBACKS.get(encoding)):
        if candidate is not None and shape[-1] % BLOCKS[candidate][0] == 0:
            return candidate
    return None


def needs_imatrix(mix_name: str, encoding: str) -> bool:
    """Returns True if a matrix of a layer is useless in this encoding without an importance matrix."""
    return encoding in NEEDS_IMATRIX or (mix_name == "Q2_K_S" and encoding == "Q2_K")
