"""A LLaMA of 58 million random parameters with a byte-level tokenizer, for measurements of generation."""

import json
from pathlib import Path
from typing import Any

import torch
from sentencepiece import sentencepiece_model_pb2 as sentencepiece

SIZES: dict[str, Any] = {
    "hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8, "num_attention_heads": 8,
    "num_key_value_heads": 8, "vocab_size": 32000, "max_position_embeddings": 2048,
}  # fmt: skip
CONTROL, UNKNOWN, NORMAL, BYTE = 3, 2, 1, 6


def make_small_model(folder: Path, *, context: int = SIZES["max_position_embeddings"]) -> None:
    """Writes the model if it is missing: float16, 116 MB. `context` counts tokens."""
    if (folder / "config.json").is_file():
        return
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    # Wider than transformers' 0.02: the likeliest tokens must differ by more than rounding.
    model: Any = LlamaForCausalLM(
        LlamaConfig(**{**SIZES, "max_position_embeddings": context}, initializer_range=0.06)
    )
    model.half().save_pretrained(folder)
    write_tokenizer(folder / "tokenizer.model")
    for file in folder.iterdir():
        file.chmod(0o644)


def write_tokenizer(path: Path) -> None:
    """Writes LLaMA's layout of 32,000 pieces: three special ones, the bytes, and invented words."""
    model = sentencepiece.ModelProto()
    for piece, kind in (("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL)):
        model.pieces.add(piece=piece, score=0.0, type=kind)
    for value in range(256):
        model.pieces.add(piece=f"<0x{value:02X}>", score=0.0, type=BYTE)
    for index in range(259, SIZES["vocab_size"]):
        model.pieces.add(piece=f"▁w{index}", score=-float(index), type=NORMAL)
    model.trainer_spec.model_type = 2
    model.trainer_spec.vocab_size = SIZES["vocab_size"]
    model.trainer_spec.byte_fallback = True
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.remove_extra_whitespaces = False
    path.write_bytes(model.SerializeToString())


def parameters(folder: Path) -> int:
    """Returns the number of parameters according to the file's header."""
    with (folder / "model.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return sum(torch.Size(entry["shape"]).numel() for name, entry in header.items() if name != "__metadata__")
