"""Random Hugging Face models of transformers' own making, small and able to fail, with a tokenizer file."""

from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.reference.tokenizer_files import piece_names, sentencepiece_file

SIZES: dict[str, Any] = {
    "hidden_size": 48, "intermediate_size": 140, "num_hidden_layers": 3, "num_attention_heads": 8,
    "num_key_value_heads": 4, "vocab_size": 101, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
}  # fmt: skip
"""Sizes that do not coincide: head_dim 6, 101 tokens, feed-forward width 140."""


def save_llama(folder: Path, dtype: torch.dtype = torch.float16, **config: Any) -> LlamaForCausalLM:
    """A model with norms and biases of its own, saved by transformers with a tokenizer of 101 tokens."""
    torch.manual_seed(11)
    model = LlamaForCausalLM(LlamaConfig(**{**SIZES, **config}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.copy_(1 + 0.2 * torch.randn_like(parameter))
            elif name.endswith("bias"):
                parameter.copy_(0.1 * torch.randn_like(parameter))
            else:
                parameter.mul_(8)  # transformers' 0.02 would leave the layers without a say in the logits
    model = model.to(dtype).eval()
    model.save_pretrained(folder)
    (folder / "tokenizer.model").write_bytes(sentencepiece_file(piece_names(101)))
    return model
