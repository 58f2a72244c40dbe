"""A LoRA adapter for the miniature's attention, as its documentation names some: random, without embeddings."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

LAYERS, WIDTH, RANK = 3, 112, 4


def write_plain_adapter(folder: Path, seed: int) -> Path:
    """Writes the adapter into a folder and returns it."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 8,
        "target_modules": ["q_proj", "o_proj"], "base_model_name_or_path": "llama-7b-hf",
    }  # fmt: skip
    tensors = {
        f"base_model.model.model.layers.{layer}.self_attn.{module}.lora_{half}.weight": (
            random.normal(size=(RANK, WIDTH) if half == "A" else (WIDTH, RANK)) / 50
        ).astype(np.float16)
        for layer in range(LAYERS)
        for module in ("q_proj", "o_proj")
        for half in "AB"
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder
