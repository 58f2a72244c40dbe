"""Limits of llama.cpp by architecture: what it computes otherwise than a configuration may ask for is refused.

Sources: ggml-org/llama.cpp `src/models/*.cpp` (load_arch_hparams, load_arch_tensors) and its converter (`conversion/`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from services.architectures.config import ModelConfig
from services.errors import UnsupportedFormat

HINT = "Keep it in Hugging Face's layout."


@dataclass(frozen=True, kw_only=True, slots=True)
class GgufSupport:
    """Facts on one `general.architecture`.

    Attributes:
        scalings: Types of rotary scaling that are computed.
        biases: Modules whose bias is loaded.
        norm_offset: Norm weights are offsets from one in Hugging Face's layout and whole factors in GGUF.
        untied: The output head may be a tensor of its own.
        window_period: Distance between layers that attend to all tokens, the others attend to a window; 0 if none is computed.
        square: The heads must make up the hidden size.
    """

    scalings: tuple[str, ...] = ("default", "linear", "yarn")
    biases: tuple[str, ...] = ()
    norm_offset: bool = False
    untied: bool = True
    window_period: int = 0
    square: bool = False


ATTENTION = ("q_proj", "k_proj", "v_proj")

SUPPORT: Mapping[str, GgufSupport] = {
    "llama": GgufSupport(
        scalings=("default", "linear", "llama3", "yarn"),
        biases=(*ATTENTION, "o_proj", "gate_proj", "up_proj", "down_proj"),
    ),
    "qwen2": GgufSupport(biases=ATTENTION, square=True),
    "qwen3": GgufSupport(biases=ATTENTION),
    "phi3": GgufSupport(scalings=("default", "longrope", "su"), square=True),
    "gemma2": GgufSupport(scalings=("default",), norm_offset=True, untied=False, window_period=2),
    "gemma3": GgufSupport(scalings=("default", "linear"), norm_offset=True, window_period=6),
}
"""Facts by `general.architecture`."""


def support_of(config: ModelConfig) -> GgufSupport | None:
    """Returns the facts on a model's architecture, None if GGUF files of it are not written."""
    name = config.family.gguf if config.family else None
    return None if name is None else SUPPORT.get(name)


def check_family(config: ModelConfig, names: Mapping[str, Any]) -> None:
    """Refuses a model if llama.cpp would not compute what its configuration says.

    Args:
        names: The model's tensors, by their names.

    Raises:
        UnsupportedFormat: It is of another family, or has a scaling, a bias, a head or a scale that is not computed.
    """
    facts = support_of(config)
    if facts is None or config.family is None:
        raise UnsupportedFormat(
            f"The model is of type {config.model_type!r}; GGUF files are written of the architectures "
            f"{', '.join(SUPPORT)}.",
            HINT,
        )
    kind = config.rope_type or "default"
    if kind not in facts.scalings:
        listed = ", ".join(repr(name) for name in facts.scalings if name != "default") or "none"
        raise UnsupportedFormat(
            f"The model's rotary scaling is of type {kind!r}; of {config.family.gguf} llama.cpp computes {listed}.",
            "Use llama.cpp's own converter on the Hugging Face model.",
        )
    heads = config.num_attention_heads
    if facts.square and heads * config.head_dim != config.hidden_size:
        raise UnsupportedFormat(
            f"The model has {heads} heads of {config.head_dim}; of {config.family.gguf} llama.cpp computes only heads that make "
            f"up the hidden size, which is {config.hidden_size}.",
            HINT,
        )
    _check_tensors(config, facts, names)
    _check_gemma(config)


def _check_tensors(config: ModelConfig, facts: GgufSupport, names: Mapping[str, Any]) -> None:
    for name in names:
        text = config.model_class.text_name(name)
        if text is None:
            continue
        if text.endswith(".bias") and text.split(".")[-2] not in facts.biases:
            raise UnsupportedFormat(f"The model has {name!r}, a bias that llama.cpp does not load.", HINT)
        if text == config.model_class.head and not facts.untied:
            raise UnsupportedFormat(
                f"The model has {name!r}; llama.cpp computes {config.model_type} with the embedding as its head.",
                HINT,
            )


LARGE = {"gemma2": 46, "gemma3": 62}
"""Layers of the 27B models, whose attention llama.cpp scales by the hidden size per head."""

UNCAPPED = {"gemma2": ("attn_logit_softcapping", "final_logit_softcapping")}
"""Limits of logits that cannot be switched off, by architecture."""


def _check_gemma(config: ModelConfig) -> None:
    architecture = str(config.family.gguf if config.family else "")
    if architecture not in LARGE:
        return
    own = config.text_source
    large = config.num_hidden_layers == LARGE[architecture]
    scale = config.hidden_size // config.num_attention_heads if large else config.head_dim
    stated = own.get("query_pre_attn_scalar", 256)
    if stated != scale:
        raise UnsupportedFormat(
            f"The model scales attention by {stated} (query_pre_attn_scalar); llama.cpp scales it by {scale} here.",
            HINT,
        )
    for key in UNCAPPED.get(architecture, ()):
        if key in own and own[key] is None:
            raise UnsupportedFormat(
                f"The model has no {key}; llama.cpp computes {architecture} with one.", HINT
            )
    if own.get("use_bidirectional_attention"):
        raise UnsupportedFormat(
            "The model attends to later tokens too; llama.cpp computes it causally.", HINT
        )


def windowed_layers(config: ModelConfig) -> list[bool]:
    """Returns for each layer whether it attends to a window only, as the configuration says; empty without a window."""
    own = config.text_source
    facts = support_of(config)
    if facts is None or not facts.window_period or not own.get("sliding_window", 4096):
        return []
    stated = own.get("layer_types")
    if isinstance(stated, list):
        return [kind == "sliding_attention" for kind in stated]
    period = own.get("sliding_window_pattern") or facts.window_period
    return [(layer + 1) % period != 0 for layer in range(config.num_hidden_layers)]


def family_warnings(config: ModelConfig) -> list[str]:
    """Returns a warning if the model attends to a window that llama.cpp does not compute."""
    facts, own = support_of(config), config.text_source
    window = own.get("sliding_window")
    if facts is None or facts.window_period or not isinstance(window, int):
        return []
    if window >= config.max_position_embeddings or own.get("use_sliding_window") is False:
        return []
    if config.model_type.startswith("qwen") and not own.get("use_sliding_window"):
        return []
    return [
        f"The model attends to the last {window} tokens; llama.cpp attends to all of them, which differs in longer texts."
    ]
