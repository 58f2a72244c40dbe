"""A slow model: random weights of a few hundred megabytes, and an adapter for it.

Written with NumPy alone, independently of the code under test.
"""

import json
import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

HIDDEN, INTERMEDIATE, LAYERS, HEADS, KV_HEADS = 1024, 2736, 14, 16, 8
KV_WIDTH = HIDDEN // HEADS * KV_HEADS
RANK = 16
PROJECTIONS = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (KV_WIDTH, HIDDEN),
    "self_attn.v_proj": (KV_WIDTH, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
    "mlp.up_proj": (INTERMEDIATE, HIDDEN),
    "mlp.down_proj": (HIDDEN, INTERMEDIATE),
}
Tensors = dict[str, NDArray[np.float16]]


class Noise:
    """Small random numbers; fast, since each tensor repeats one block from another offset."""

    def __init__(self) -> None:
        random = np.random.default_rng(5).standard_normal(1_000_003, dtype=np.float32)
        self.block = (random * 0.02).astype(np.float16)
        self.drawn = 0

    def __call__(self, *shape: int) -> NDArray[np.float16]:
        """A tensor of this shape."""
        self.drawn += 1
        return np.resize(np.roll(self.block, 7919 * self.drawn), shape)


def write_slow_model(folder: Path, tokenizer_model: Path, *, vocab_size: int, layers: int = LAYERS) -> int:
    """Writes a Hugging Face LLaMA with random float16 weights and returns its size in bytes."""
    noise = Noise()
    tensors: Tensors = {
        "model.embed_tokens.weight": noise(vocab_size, HIDDEN),
        "lm_head.weight": noise(vocab_size, HIDDEN),
        "model.norm.weight": np.ones(HIDDEN, np.float16),
    }
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        tensors |= {f"{prefix}{name}.weight": noise(*shape) for name, shape in PROJECTIONS.items()}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}{norm}.weight"] = np.ones(HIDDEN, np.float16)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    (folder / "config.json").write_text(json.dumps(_config(vocab_size, layers), indent=2))
    shutil.copyfile(tokenizer_model, folder / "tokenizer.model")
    return sum(tensor.nbytes for tensor in tensors.values())


def write_slow_adapter(folder: Path, *, layers: int = LAYERS) -> None:
    """A LoRA of rank 16 on all seven projections of that model."""
    noise = Noise()
    tensors: Tensors = {}
    for layer in range(layers):
        for name, (rows, columns) in PROJECTIONS.items():
            prefix = f"base_model.model.model.layers.{layer}.{name}"
            tensors[f"{prefix}.lora_A.weight"] = noise(RANK, columns)
            tensors[f"{prefix}.lora_B.weight"] = noise(rows, RANK)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_model.safetensors").chmod(0o644)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "slow",
        "r": RANK,
        "lora_alpha": 32,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "modules_to_save": None,
        "target_modules": [name.rpartition(".")[2] for name in PROJECTIONS],
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2))


def _config(vocab_size: int, layers: int) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "vocab_size": vocab_size,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
    }
