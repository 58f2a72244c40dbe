"""Configuration of a model, read from Meta's `params.json` or Hugging Face's `config.json`.

Sizes come from the tensors and are compared with those in the files; only values that do not follow from tensors (the number
of heads, epsilon, rotary base, context) are taken from a file.
"""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from services.architectures.dense_types import DENSE_TYPES, class_of
from services.architectures.families import FAMILIES, family_of
from services.architectures.family import Family, ModelClass
from services.architectures.mixtures import MIXTURES
from services.architectures.quantized import without_quantization
from services.architectures.vocabulary import Vocabulary
from services.errors import ConfigMismatch, UnsupportedFormat
from services.files.json_file import Json, optional, read_json, require
from services.files.tensors import DTYPE_NAMES

ROPE_THETA_DEFAULT = 10000.0
LLAMA3_ROPE = {
    "rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
"""Llama 3.1's frequency scaling (meta-llama/llama-models `model.py`, apply_scaling)."""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Configuration of a dense model in Hugging Face's terms; sizes in elements.

    Values that only one family has are read from `text_source`. Its `repr` is part of the identity of work in journals: renaming
    a field disowns old ones.
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float
    rope_theta: float = ROPE_THETA_DEFAULT
    max_position_embeddings: int = 2048
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    rope_scaling: Mapping[str, Any] | None = None
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    dtype: str = "F16"
    source: Mapping[str, Any] = field(
        default_factory=dict
    )  # config.json as it was: unknown keys are passed on
    params: Mapping[str, Any] = field(default_factory=dict)  # params.json as it was, if the model had one

    @property
    def model_type(self) -> str:
        """The `model_type` of `config.json`; "llama" for an original checkpoint."""
        return str(self.source.get("model_type", "llama"))

    @property
    def model_class(self) -> ModelClass:
        """Transformers' class of the model and the names of its tensors."""
        found = class_of(self.model_type)
        assert found is not None, "read_config refuses other types"
        return found

    @property
    def family(self) -> Family | None:
        """Family of the model, None for a dense type without one."""
        return family_of(self.model_type)

    @property
    def text_source(self) -> Mapping[str, Any]:
        """Configuration of the text model as `config.json` has it: the whole file, or the object nested in it."""
        return text_values(self.source, self.model_class)

    @property
    def rope_type(self) -> str | None:
        """Type of the rotary scaling, None without one."""
        return rope_type_of(self.rope_scaling)


def rope_type_of(scaling: Mapping[str, Any] | None) -> str | None:
    """Returns the type of a rotary scaling, under its present or its former key; None without a scaling."""
    found = (
        (scaling or {}).get("rope_type", (scaling or {}).get("type"))
        if isinstance(scaling, Mapping)
        else None
    )
    return None if found is None else str(found)


# ---- Meta ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MetaSizes:
    """Sizes of an original checkpoint by its tensors, joined over the ranks."""

    dim: int
    n_layers: int
    query_rows: int
    key_rows: int
    ffn_rows: int
    vocab_size: int
    tied: bool
    dtype: str
    head_dim: int | None = None  # if rope.freqs gives it


def read_params(path: Path) -> Json:
    """Returns `params.json`, unwrapped if the sizes nest under "model".

    Raises:
        UnreadableFile: The file is not a JSON object.
    """
    return unwrap_params(read_json(path))


def unwrap_params(params: Json) -> Json:
    """Returns the sizes in a `params.json`, which nest under "model" in some releases."""
    inner = params.get("model")
    return inner if isinstance(inner, dict) and "dim" in inner else params


def params_to_config(
    params: Json, sizes: MetaSizes, *, vocabulary: Vocabulary | None, instruct: bool
) -> ModelConfig:
    """Returns the configuration of an original checkpoint from its `params.json`, its tensors and its tokenizer.

    Raises:
        IncompleteCheckpoint: A number is missing.
        ConfigMismatch: A number disagrees with the tensors; both are named.
    """
    n_heads = require(params, "n_heads", int, file="params.json")
    head_dim = sizes.query_rows // n_heads
    n_kv_heads = sizes.key_rows // head_dim if head_dim else 0
    found = {
        "dim": sizes.dim, "n_layers": sizes.n_layers, "vocab_size": sizes.vocab_size,
        "n_heads": sizes.query_rows / (sizes.head_dim or head_dim or 1), "n_kv_heads": n_kv_heads,
    }  # fmt: skip
    _compare(params, found, sizes)
    theta = optional(params, "rope_theta", ROPE_THETA_DEFAULT, file="params.json")
    family = meta_family(params, sizes, vocabulary.kind if vocabulary else "sentencepiece")
    bos, eos = _special_ids(vocabulary, instruct)
    return ModelConfig(
        hidden_size=sizes.dim, intermediate_size=sizes.ffn_rows, num_hidden_layers=sizes.n_layers,
        num_attention_heads=n_heads, num_key_value_heads=n_kv_heads, head_dim=head_dim,
        vocab_size=sizes.vocab_size, rms_norm_eps=require(params, "norm_eps", float, file="params.json"),
        rope_theta=theta,
        max_position_embeddings=optional(params, "max_seq_len", CONTEXT[family], file="params.json"),
        tie_word_embeddings=sizes.tied, rope_scaling=_rope_scaling(params, sizes),
        bos_token_id=bos, eos_token_id=eos, dtype=sizes.dtype, params=params,
    )  # fmt: skip


CONTEXT = {"llama-1": 2048, "llama-2": 4096, "codellama": 16384, "llama-3": 8192, "llama-3.1": 131072}
"""Trained context length by family, in tokens (the model cards)."""


def meta_family(params: Json, sizes: MetaSizes, tokenizer: str) -> str:
    """Returns the generation of an original checkpoint; only its context length depends on it.

    `params.json` does not name it. Llama 3 has a tiktoken tokenizer, Code Llama a larger rotary base. Llama 2 was
    published in bfloat16, Llama 1 in float16; grouped KV heads, an FFN multiplier or an epsilon of 1e-5 came with
    Llama 2 (except that Llama 1's 65B has that epsilon too).
    """
    if tokenizer == "tiktoken":
        return "llama-3.1" if params.get("use_scaled_rope") else "llama-3"
    if (params.get("rope_theta") or ROPE_THETA_DEFAULT) > ROPE_THETA_DEFAULT:
        return "codellama"
    newer = sizes.dtype == "BF16" or "n_kv_heads" in params or "ffn_dim_multiplier" in params
    first_65b = sizes.dim == 8192 and sizes.n_layers == 80
    return "llama-2" if newer or (params.get("norm_eps") == 1e-5 and not first_65b) else "llama-1"


def _compare(params: Json, found: Mapping[str, float], sizes: MetaSizes) -> None:
    for key, actual in found.items():
        claimed = params.get(key)
        absent = claimed is None or (key == "vocab_size" and claimed == -1)
        if not absent and claimed != actual:
            raise ConfigMismatch(
                f"params.json says {key} = {claimed!r}; the tensors say {actual:g}.",
                "The checkpoint and its params.json are of different models: use the ones that belong together.",
            )
    head_dim = sizes.query_rows // params["n_heads"]
    if head_dim % 2 or sizes.query_rows % params["n_heads"] or sizes.key_rows % head_dim:
        raise ConfigMismatch(
            f"params.json says n_heads = {params['n_heads']}, which does not divide wq's {sizes.query_rows} "
            f"and wk's {sizes.key_rows} rows into whole heads of an even size.",
            "Use the params.json that belongs to these weights.",
        )
    _compare_ffn(params, sizes)


def _compare_ffn(params: Json, sizes: MetaSizes) -> None:
    if params.get("multiple_of") is None:
        return
    multiple_of = require(params, "multiple_of", int, file="params.json")
    multiplier = optional(params, "ffn_dim_multiplier", 1.0, file="params.json")
    rows = ffn_rows(sizes.dim, multiple_of, multiplier)
    if rows != sizes.ffn_rows:
        raise ConfigMismatch(
            f"params.json gives a feed-forward width of {rows} (multiple_of {multiple_of}, ffn_dim_multiplier "
            f"{params.get('ffn_dim_multiplier')}), w1 has {sizes.ffn_rows} rows.",
            "Use the params.json that belongs to these weights.",
        )


def ffn_rows(dim: int, multiple_of: int, multiplier: float = 1.0) -> int:
    """Returns the number of rows of w1 (facebookresearch/llama `model.py`, FeedForward.__init__)."""
    hidden = int(multiplier * int(8 * dim / 3))
    return multiple_of * math.ceil(hidden / multiple_of)


def _rope_scaling(params: Json, sizes: MetaSizes) -> Json | None:
    if not params.get("use_scaled_rope"):
        return None
    factor = optional(params, "rope_scaling_factor", 32.0 if sizes.tied else 8.0, file="params.json")
    return {**LLAMA3_ROPE, "factor": factor}


def _special_ids(vocabulary: Vocabulary | None, instruct: bool) -> tuple[int, int | list[int]]:
    """Returns the ids of beginning and end. Llama 3's follow its ranks: 128000 and 128001; 128008 and 128009 end a turn."""
    if vocabulary is None or vocabulary.kind != "tiktoken":
        return 1, 2
    first = len(vocabulary.pieces)
    return first, [first + 1, first + 8, first + 9] if instruct else first + 1


# ---- Hugging Face -------------------------------------------------------------------------------------


def read_config(path: Path, dtype: str) -> ModelConfig:
    """Returns the configuration of a Hugging Face folder; the caller compares its sizes with the tensors.

    What it says about quantization is left out.

    Args:
        dtype: Code of the weights' dtype.

    Raises:
        UnsupportedFormat: The model is of another type.
        IncompleteCheckpoint: A number is missing.
    """
    return config_of(without_quantization(read_json(path)), dtype)


def config_of(raw: Json, dtype: str) -> ModelConfig:
    """Returns the configuration in the content of a `config.json`. Raises as `read_config`."""
    model_class = known_class(raw)
    own = text_values(raw, model_class)
    rope = _rope_parameters(own)
    values = {key: own.get(model_class.keys.get(key, key)) for key in ModelConfig.__dataclass_fields__}
    values = {key: model_class.config_defaults.get(key) if v is None else v for key, v in values.items()}

    def number(key: str, default: float) -> Any:
        return optional(values, key, default, file="config.json")

    heads = require(values, "num_attention_heads", int, file="config.json")
    hidden = require(values, "hidden_size", int, file="config.json")
    theta = float(model_class.config_defaults.get("rope_theta", ROPE_THETA_DEFAULT))
    stated = optional(rope, "rope_theta", theta, file="config.json, rope_parameters")
    return ModelConfig(
        hidden_size=hidden, num_attention_heads=heads,
        intermediate_size=_intermediate_size(values, model_class, hidden),
        num_hidden_layers=require(values, "num_hidden_layers", int, file="config.json"),
        num_key_value_heads=number("num_key_value_heads", heads), head_dim=number("head_dim", hidden // heads),
        vocab_size=require(values, "vocab_size", int, file="config.json"),
        rms_norm_eps=number("rms_norm_eps", 1e-6),
        rope_theta=optional(dict(own), "rope_theta", stated, file="config.json"),
        max_position_embeddings=number("max_position_embeddings", 2048),
        tie_word_embeddings=_tied(raw, own, model_class),
        attention_bias=bool(values["attention_bias"]), mlp_bias=bool(values["mlp_bias"]),
        rope_scaling=own.get("rope_scaling") or (rope if rope.get("rope_type", "default") != "default" else None),
        bos_token_id=own.get("bos_token_id", raw.get("bos_token_id")),
        eos_token_id=own.get("eos_token_id", raw.get("eos_token_id")),
        dtype=dtype, source=raw,
    )  # fmt: skip


def _intermediate_size(values: Json, model_class: ModelClass, hidden: int) -> int:
    """Returns the width of the feed-forward network: four times the hidden size where GPT-2's `n_inner` is null."""
    if values.get("intermediate_size") is None and model_class.keys.get("intermediate_size") == "n_inner":
        return 4 * hidden
    return require(values, "intermediate_size", int, file="config.json")  # type: ignore[no-any-return]


def text_values(source: Mapping[str, Any], model_class: ModelClass) -> Mapping[str, Any]:
    """Returns the object of a `config.json` that describes the text model: the whole, or one nested in it."""
    nested = source.get(model_class.config_key) if model_class.config_key else source
    return nested if isinstance(nested, Mapping) else {}


def known_class(raw: Json) -> ModelClass:
    """Returns the class of model that a `config.json` names.

    Raises:
        UnsupportedFormat: It is not one that can be read.
    """
    model_type = raw.get("model_type")
    found = class_of(model_type) if isinstance(model_type, str) else None
    if found is None:
        dense = ", ".join(sorted({*DENSE_TYPES, *MIXTURES}))
        raise UnsupportedFormat(
            f"config.json says model_type = {model_type!r}; supported are {', '.join(FAMILIES)}, and for merges within Hugging Face's "
            f"layout {dense}.",
            "Use a model of one of these types.",
        )
    return found


def _rope_parameters(own: Mapping[str, Any]) -> Json:
    """Returns `rope_parameters`; of a model with several kinds of layers, those of its layers of full attention."""
    found = own.get("rope_parameters")
    if not isinstance(found, dict):
        return {}
    full = found.get("full_attention")
    return full if isinstance(full, dict) else found


def _tied(raw: Json, own: Mapping[str, Any], model_class: ModelClass) -> bool:
    """Returns `tie_word_embeddings`; where a text model nests, the value outside counts, since the head is outside too."""
    default = model_class.config_defaults.get("tie_word_embeddings", False)
    stated = raw.get("tie_word_embeddings", own.get("tie_word_embeddings"))
    return bool(default if stated is None else stated)


def config_to_json(config: ModelConfig, dtype_name: str) -> Json:
    """Returns the `config.json` of a model: the source's own keys, if it had the file, and the known values."""
    if config.model_type != "llama":
        return _changed_source(config, dtype_name)
    known: Json = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": config.hidden_size, "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers, "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads, "head_dim": config.head_dim,
        "vocab_size": config.vocab_size, "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps, "rope_theta": config.rope_theta,
        "rope_scaling": dict(config.rope_scaling) if config.rope_scaling else None,
        "tie_word_embeddings": config.tie_word_embeddings, "attention_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias, "bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id,
        "initializer_range": 0.02, "use_cache": True, "pretraining_tp": 1, "torch_dtype": dtype_name,
    }  # fmt: skip
    if not config.source:
        return known
    kept = {
        k: v for k, v in config.source.items() if k not in ("transformers_version", "_name_or_path", "dtype")
    }
    stated = ("vocab_size", "torch_dtype", "tie_word_embeddings")
    return {**kept, **{key: known[key] for key in known if key not in kept or key in stated}}


DTYPE_KEYS = ("dtype", "torch_dtype")


def _changed_source(config: ModelConfig, dtype_name: str) -> Json:
    """Returns the source's `config.json` with the vocabulary, the tie and the dtype of this configuration."""
    values: Json = copy.deepcopy(
        {k: v for k, v in config.source.items() if k not in ("transformers_version", "_name_or_path")}
    )
    text = cast("Json", text_values(values, config.model_class))
    text["vocab_size"] = config.vocab_size
    for part in (values, text):
        if part is values or "tie_word_embeddings" in part:
            part["tie_word_embeddings"] = config.tie_word_embeddings
        if "vocab_size" in part:
            part["vocab_size"] = config.vocab_size
    _set_dtype(values, dtype_name, everywhere=DTYPE_NAMES[config.dtype] != dtype_name)
    return values


def _set_dtype(values: Json, name: str, *, everywhere: bool) -> None:
    """Sets the dtype where the configuration has it, in nested ones only if it was changed."""
    for key in [key for key in DTYPE_KEYS if key in values] or ["torch_dtype"]:
        values[key] = name
    for part in values.values():
        if everywhere and isinstance(part, dict):
            part.update(dict.fromkeys((key for key in DTYPE_KEYS if key in part), name))
