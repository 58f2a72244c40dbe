"""`params.json` of a model: the original's own if it had one, otherwise the configuration in Meta's terms.

Source: ModelArgs of facebookresearch/llama `model.py` and of meta-llama/llama-models `llama3/args.py`.
"""

import math
from typing import Any

from services.architectures.config import (
    CONTEXT,
    LLAMA3_ROPE,
    ROPE_THETA_DEFAULT,
    MetaSizes,
    ModelConfig,
    ffn_rows,
    meta_family,
)
from services.errors import UnsupportedOption
from services.files.json_file import Json

PUBLISHED_MULTIPLE = 256
"""`multiple_of` of Llama 1 and of the smaller Llama 2."""

LARGEST_MULTIPLE = 4096
"""`multiple_of` of Llama 2 70B, the largest that was published."""

MULTIPLIER_DIGITS = 17
"""Number of digits that write a float64 exactly."""


def config_to_params(config: ModelConfig) -> Json:
    """Returns the complete `params.json` of a model.

    Raises:
        UnsupportedOption: The format cannot express the rotary scaling or the feed-forward width.
    """
    params = dict(config.params) or _computed(config)
    if params.get("multiple_of") is None:
        multiple_of, multiplier = feed_forward(config.hidden_size, config.intermediate_size)
        params["multiple_of"] = multiple_of
        params.pop("ffn_dim_multiplier", None)
        params |= {} if multiplier is None else {"ffn_dim_multiplier": multiplier}
    return {**params, "vocab_size": config.vocab_size}


def _computed(config: ModelConfig) -> Json:
    params: Json = {
        "dim": config.hidden_size, "n_layers": config.num_hidden_layers, "n_heads": config.num_attention_heads,
        "norm_eps": config.rms_norm_eps,
    }  # fmt: skip
    # Llama 1's files and code have no n_kv_heads; a context beyond its 2048 means that the model is newer.
    if config.num_key_value_heads != config.num_attention_heads or config.max_position_embeddings > 2048:
        params["n_kv_heads"] = config.num_key_value_heads
    if config.rope_theta != ROPE_THETA_DEFAULT:
        params["rope_theta"] = config.rope_theta
    return params | _scaling(config)


def _scaling(config: ModelConfig) -> Json:
    scaling = config.rope_scaling
    if not scaling:
        return {}
    others = {key: scaling.get(key) for key in LLAMA3_ROPE if key != "rope_type"}
    if config.rope_type != "llama3" or others != {key: LLAMA3_ROPE[key] for key in others}:
        raise UnsupportedOption(
            f"The model's rotary scaling is {dict(scaling)}; params.json has only use_scaled_rope: llama3 with "
            f"{', '.join(f'{key} {value}' for key, value in LLAMA3_ROPE.items() if key != 'rope_type')}.",
            "Keep this model in Hugging Face's layout.",
        )
    factor = scaling.get("factor")
    implied = 32.0 if config.tie_word_embeddings else 8.0
    return {"use_scaled_rope": True, **({} if factor == implied else {"rope_scaling_factor": factor})}


def feed_forward(dim: int, width: int) -> tuple[int, float | None]:
    """Returns a `multiple_of` and `ffn_dim_multiplier` (None: not needed) for which Meta's formula gives the width.

    They are the published values if those give it: 256 alone (Llama 1, Llama 2 7B and 13B), 1.3 with the width's own power of two.
    """
    powers = [2**power for power in range(int(math.log2(LARGEST_MULTIPLE)), -1, -1)]
    for multiple_of in (PUBLISHED_MULTIPLE, *powers):
        if ffn_rows(dim, multiple_of) == width:
            return multiple_of, None
    multiple_of = next(power for power in powers if width % power == 0)
    return multiple_of, _multiplier(dim, width, multiple_of)


def _multiplier(dim: int, width: int, multiple_of: int) -> float:
    """Returns the shortest decimal for which the formula gives the width."""
    unscaled = int(8 * dim / 3)
    ends = (width, width - multiple_of + 1)  # the largest and the smallest that are rounded up to the width
    for digits in range(1, MULTIPLIER_DIGITS + 1):
        for wanted in ends:
            for rounded in (math.floor, math.ceil):
                multiplier: float = rounded(wanted / unscaled * 10**digits) / 10**digits
                if multiplier > 0 and ffn_rows(dim, multiple_of, multiplier) == width:
                    return multiplier
    raise UnsupportedOption(
        f"No ffn_dim_multiplier gives a feed-forward width of {width} at a dim of {dim}.",
        "Keep this model in Hugging Face's layout.",
    )


def params_warnings(config: ModelConfig, *, dtype: str, tokenizer: str) -> list[str]:
    """Returns warnings about values of the written `params.json` that are computed, or that it cannot hold."""
    params = config_to_params(config)
    warnings = []
    if config.params.get("multiple_of") is None:
        with_multiplier = f" and ffn_dim_multiplier {m}" if (m := params.get("ffn_dim_multiplier")) else ""
        warnings.append(
            f"params.json: multiple_of {params['multiple_of']}{with_multiplier} is computed to give the "
            f"feed-forward width {config.intermediate_size}."
        )
    context = params.get("max_seq_len") or CONTEXT[meta_family(params, _sizes(config, dtype), tokenizer)]
    if context != config.max_position_embeddings:
        warnings.append(
            f"params.json has no context length: the model has {config.max_position_embeddings} positions; converting "
            f"this output would assume {context}."
        )
    return warnings


def _sizes(config: ModelConfig, dtype: str) -> MetaSizes:
    head_rows: dict[str, Any] = {
        "query_rows": config.num_attention_heads * config.head_dim,
        "key_rows": config.num_key_value_heads * config.head_dim,
    }
    return MetaSizes(
        dim=config.hidden_size, n_layers=config.num_hidden_layers, ffn_rows=config.intermediate_size,
        vocab_size=config.vocab_size, tied=config.tie_word_embeddings, dtype=dtype, **head_rows,
    )  # fmt: skip
