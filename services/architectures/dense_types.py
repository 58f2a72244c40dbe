"""Table of dense model types that have no family: they are merged and converted within Hugging Face's layout.

A test compares each row with transformers: the class, the names of embedding and head, the defaults, and that checkpoints have
the names of the class's parameters, up to the prefixes that are renamed here. GPT-2's weights are transposed (Conv1D).
"""

from collections.abc import Mapping
from types import MappingProxyType

from services.architectures.families import FAMILIES
from services.architectures.family import INV_FREQ, ModelClass
from services.architectures.mixtures import MIXTURES

_GPT2_KEYS = {
    "hidden_size": "n_embd", "intermediate_size": "n_inner", "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head", "max_position_embeddings": "n_positions", "rms_norm_eps": "layer_norm_epsilon",
}  # fmt: skip
_GPT2_RENAMES = tuple((prefix, f"transformer.{prefix}") for prefix in ("wte.", "wpe.", "h.", "ln_f."))
"""Published files were saved from the model without its head, so their names lack the first part."""

_GPT2_DROPPED = rf"{INV_FREQ}|(transformer\.)?h\.[0-9]+\.attn\.(bias|masked_bias)|(transformer\.)?bias"
_NEOX_DROPPED = rf"{INV_FREQ}|gpt_neox\.layers\.[0-9]+\.attention\.(bias|masked_bias)"
_GPT2 = {"rms_norm_eps": 1e-5, "max_position_embeddings": 1024, "tie_word_embeddings": True}
_GEMMA = {"head_dim": 256, "max_position_embeddings": 8192, "tie_word_embeddings": True}
_GLM = {
    "num_key_value_heads": 2,
    "rms_norm_eps": 1.5625e-07,
    "max_position_embeddings": 131072,
    "attention_bias": True,
}
_LAYER_NORM = {"rms_norm_eps": "layer_norm_eps"}


def _plain(architecture: str, eps_key: str = "rms_norm_eps", /, **defaults: float) -> ModelClass:
    """Returns the class of a type whose names are LLaMA's, except that of epsilon."""
    keys = {} if eps_key == "rms_norm_eps" else {"rms_norm_eps": eps_key}
    return ModelClass(architecture=architecture, keys=keys, config_defaults=defaults)


DENSE_TYPES: Mapping[str, ModelClass] = MappingProxyType({
    "arcee": _plain("ArceeForCausalLM", rms_norm_eps=1e-5, max_position_embeddings=4096),
    "cohere": _plain("CohereForCausalLM", "layer_norm_eps", rms_norm_eps=1e-5, max_position_embeddings=8192,
                     tie_word_embeddings=True),
    "cohere2": _plain("Cohere2ForCausalLM", "layer_norm_eps", rms_norm_eps=1e-5, max_position_embeddings=8192,
                      tie_word_embeddings=True),
    "cwm": _plain("CwmForCausalLM", num_key_value_heads=8, head_dim=128, rms_norm_eps=1e-5,
                  max_position_embeddings=131072),
    "ernie4_5": _plain("Ernie4_5ForCausalLM", num_key_value_heads=2, head_dim=128, rms_norm_eps=1e-5,
                       max_position_embeddings=131072, tie_word_embeddings=True),
    "exaone4": _plain("Exaone4ForCausalLM", rms_norm_eps=1e-5),
    "gemma": _plain("GemmaForCausalLM", num_key_value_heads=16, **_GEMMA),
    "glm": _plain("GlmForCausalLM", head_dim=128, **_GLM),
    "glm4": _plain("Glm4ForCausalLM", head_dim=128, **_GLM),
    "gpt2": ModelClass(
        architecture="GPT2LMHeadModel", embeddings="transformer.wte.weight", keys=_GPT2_KEYS, config_defaults=_GPT2,
        renames=_GPT2_RENAMES, dropped=_GPT2_DROPPED, conv1d=("c_attn", "c_fc", "c_proj"),
    ),
    "gpt_bigcode": ModelClass(
        architecture="GPTBigCodeForCausalLM", embeddings="transformer.wte.weight", keys=_GPT2_KEYS,
        config_defaults={**_GPT2, "num_key_value_heads": 1}, renames=_GPT2_RENAMES, dropped=_GPT2_DROPPED,
    ),
    "gpt_neox": ModelClass(
        architecture="GPTNeoXForCausalLM", embeddings="gpt_neox.embed_in.weight", keys=_LAYER_NORM,
        renames=(("embed_out.", "lm_head."),), dropped=_NEOX_DROPPED,
        config_defaults={"rms_norm_eps": 1e-5, "attention_bias": True},
    ),
    "granite": _plain("GraniteForCausalLM"),
    "helium": _plain("HeliumForCausalLM", head_dim=128, rms_norm_eps=1e-8, max_position_embeddings=4096),
    "hyperclovax": _plain("HyperCLOVAXForCausalLM"),
    "jais2": _plain("Jais2ForCausalLM", "layer_norm_eps", rms_norm_eps=1e-5, max_position_embeddings=8192,
                    attention_bias=True, mlp_bias=True),
    "ministral3": _plain("Ministral3ForCausalLM", num_key_value_heads=8, head_dim=128, rms_norm_eps=1e-5,
                         max_position_embeddings=262144),
    "nanochat": _plain("NanoChatForCausalLM"),
    "olmo": _plain("OlmoForCausalLM"),
    "olmo2": _plain("Olmo2ForCausalLM", rms_norm_eps=1e-5),
    "olmo3": _plain("Olmo3ForCausalLM", rms_norm_eps=1e-5),
    "opt": ModelClass(
        architecture="OPTForCausalLM", embeddings="model.decoder.embed_tokens.weight",
        keys={"intermediate_size": "ffn_dim"}, config_defaults={"tie_word_embeddings": True},
        renames=(("decoder.", "model.decoder."),),
    ),
    "phi": _plain("PhiForCausalLM", "layer_norm_eps", rms_norm_eps=1e-5),
    "seed_oss": _plain("SeedOssForCausalLM", num_key_value_heads=8, head_dim=128, max_position_embeddings=524288,
                       attention_bias=True),
    "smollm3": _plain("SmolLM3ForCausalLM", num_key_value_heads=4, max_position_embeddings=32768,
                      tie_word_embeddings=True),
    "stablelm": _plain("StableLmForCausalLM", "layer_norm_eps", rms_norm_eps=1e-5, max_position_embeddings=4096),
    "starcoder2": _plain("Starcoder2ForCausalLM", "norm_epsilon", num_key_value_heads=2, rms_norm_eps=1e-5,
                         max_position_embeddings=4096, tie_word_embeddings=True),
    "vaultgemma": _plain("VaultGemmaForCausalLM", num_key_value_heads=4, **_GEMMA),
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
