"""Tiny random models of each family and PEFT adapters on them, made by transformers and PEFT, with a byte-level tokenizer."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

VOCABULARY = 300
"""Rows of the embeddings; the tokenizer has fewer tokens, as most published models do."""

SIZES: Mapping[str, Any] = {
    "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 128,
}  # fmt: skip
"""Sizes, no two equal: 64 query rows, 32 key rows, 128 of both and values, 160 of gate and up."""

LAYERS = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}

LONGROPE = {
    "type": "longrope", "short_factor": [1.0 + 0.05 * i for i in range(6)], "long_factor": [2.0 + i for i in range(6)],
}  # fmt: skip

OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "llama": SIZES,
    "mistral": {**SIZES, "sliding_window": 16},
    "qwen2": SIZES,
    "qwen3": SIZES,
    "phi3": {**{key: size for key, size in SIZES.items() if key != "head_dim"}, "pad_token_id": 0, "original_max_position_embeddings": 32,
             "rope_scaling": LONGROPE},
    "gemma2": {**SIZES, **LAYERS, "query_pre_attn_scalar": 16},
    "gemma3_text": {**SIZES, **LAYERS, "query_pre_attn_scalar": 16},
    "gemma3": {
        "text_config": {**SIZES, **LAYERS, "query_pre_attn_scalar": 16},
        "vision_config": {
            "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 3, "image_size": 28,
            "patch_size": 14, "vision_use_head": False,
        },
        "mm_tokens_per_image": 4, "boi_token_index": 270, "eoi_token_index": 271, "image_token_index": 272,
    },
    "mixtral": {**SIZES, "num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": None},
    "qwen3_moe": {**SIZES, "intermediate_size": 112, "moe_intermediate_size": 36, "num_experts": 5, "num_experts_per_tok": 2},
}  # fmt: skip
"""Configurations by `model_type`."""

DENSE_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "cohere2": LAYERS,
    "gpt_bigcode": {"multi_query": True},
    "gpt_neox": {"num_key_value_heads": 4},
    "opt": {"word_embed_proj_dim": 48},
    "stablelm": {"use_qkv_bias": True, "qk_layernorm": True},
    "vaultgemma": LAYERS,
}
"""Configurations of dense types that need more than SIZES."""

MERGES = ["t h", "th e", "i n", "Ġ the", "e r", "a n", "an d", "Ġ and", "ä ¸", "ä¸ Ń"]
"""Merges of the tokenizer: English, a space before a word, and the first bytes of Chinese characters."""

PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
"""Qwen2's pattern of words."""

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def save_tiny(
    model_type: str,
    folder: Path,
    *,
    seed: int = 0,
    tied: bool | None = None,
    dtype: torch.dtype = torch.float16,
    vocab: int = VOCABULARY,
    **options: Any,
) -> PreTrainedModel:
    """Saves a random model with its tokenizer, and returns it.

    `tied` is the configuration class's own default if it is None; `options` are keys of the (text model's) configuration.
    """
    torch.manual_seed(seed)
    values = copy.deepcopy(dict(OPTIONS[model_type])) if model_type in OPTIONS else dense_options(model_type)
    text = values.get("text_config", values)
    text |= {"vocab_size": vocab, **options}
    if tied is not None:
        values["tie_word_embeddings"] = text["tie_word_embeddings"] = tied
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **values))
    randomize(model)
    model = model.to(dtype).eval()
    model.config.dtype = dtype
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return model  # type: ignore[no-any-return]


def dense_options(model_type: str) -> dict[str, Any]:
    """The sizes under the names that a configuration class of a dense type has for them."""
    class_values = CONFIG_MAPPING[model_type]
    names = class_values.attribute_map
    known = set(class_values().to_dict())
    sizes = {names.get(key, key): size for key, size in SIZES.items() if names.get(key, key) in known}
    width = {key: 80 for key in ("n_inner", "ffn_dim") if key in known}
    tokens = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0)
    return {**sizes, **width, **tokens, **copy.deepcopy(dict(DENSE_OPTIONS.get(model_type, {})))}


def randomize(model: nn.Module) -> None:
    """Draws values with which each tensor counts: transformers' own would leave norms at one and biases at zero."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.copy_(parameter + 0.2 * torch.randn_like(parameter))
            else:
                parameter.copy_(0.15 * torch.randn_like(parameter))
            assert parameter.isfinite().all(), name


def save_tiny_adapter(folder: Path, model: PreTrainedModel, *, seed: int = 1, **options: Any) -> Path:
    """Saves a LoRA adapter with random halves, by default on all linear layers; `options` are those of PEFT's LoraConfig."""
    settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **options}
    settings = copy.deepcopy(settings)  # PEFT adds to its lists
    torch.manual_seed(seed)
    peft_model = get_peft_model(copy.deepcopy(model), LoraConfig(**settings))
    with torch.no_grad():
        for parameter in peft_model.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.1 * torch.randn(parameter.shape))
    peft_model.save_pretrained(folder, save_embedding_layers=False)
    return folder


def byte_level_tokenizer() -> Tokenizer:
    """A byte-level BPE tokenizer as Qwen2's is built, with 256 bytes, ten merges and three special tokens."""
    pieces = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces += [merge.replace(" ", "") for merge in MERGES]
    merges = [(left, right) for left, right in (merge.split(" ") for merge in MERGES)]
    tokenizer = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PATTERN), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    return tokenizer


def save_tokenizer(folder: Path) -> None:
    """Saves `tokenizer.json` and its JSON files, as transformers writes them."""
    fast = PreTrainedTokenizerFast(
        tokenizer_object=byte_level_tokenizer(), eos_token="<|im_end|>", pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
    )  # fmt: skip
    fast.save_pretrained(folder)
