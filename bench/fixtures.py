"""Weights of LLaMA-7B's width with random values: an original checkpoint and adapters.

dim 4096, 32 heads, some layers, float16; adapter a: rank 8 with embeddings of 49,953 rows, adapter b: rank 64 with 49,954,
and one of rank 8 without embeddings.
The tokenizers are placeholders of those sizes.
"""

import json
from pathlib import Path

import torch
from sentencepiece import sentencepiece_model_pb2 as sentencepiece

DIM, HEADS, FFN, VOCABULARY = 4096, 32, 11008, 32000
PROJECTIONS = {
    "self_attn.q_proj": (DIM, DIM), "self_attn.k_proj": (DIM, DIM), "self_attn.v_proj": (DIM, DIM),
    "self_attn.o_proj": (DIM, DIM), "mlp.gate_proj": (FFN, DIM), "mlp.up_proj": (FFN, DIM), "mlp.down_proj": (DIM, FFN),
}  # fmt: skip
RANKS_AND_ROWS = {"a": (8, 49953), "b": (64, 49954), "plain": (8, 0)}
"""Rank and rows of the embeddings; 0 is none."""


class Numbers:
    """Random numbers from one repeated block, since drawing billions takes long."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._block = (torch.randn(DIM * 1024, generator=generator) * 0.02).half()

    def tensor(self, *shape: int) -> torch.Tensor:
        """Returns a float16 tensor of this shape."""
        count = torch.Size(shape).numel()
        return self._block.repeat(count // len(self._block) + 1)[:count].reshape(shape).clone()


def make_original(folder: Path, layers: int, vocabulary: int = VOCABULARY) -> None:
    """Writes an original checkpoint of one rank."""
    folder.mkdir(parents=True)
    numbers = Numbers(1)
    ones = torch.ones(DIM, dtype=torch.float16)
    state = {
        "tok_embeddings.weight": numbers.tensor(vocabulary, DIM), "norm.weight": ones.clone(),
        "output.weight": numbers.tensor(vocabulary, DIM),
    }  # fmt: skip
    for layer in range(layers):
        prefix = f"layers.{layer}."
        for name in ("wq", "wk", "wv", "wo"):
            state[f"{prefix}attention.{name}.weight"] = numbers.tensor(DIM, DIM)
        for name, shape in (("w1", (FFN, DIM)), ("w2", (DIM, FFN)), ("w3", (FFN, DIM))):
            state[f"{prefix}feed_forward.{name}.weight"] = numbers.tensor(*shape)
        for name in ("attention_norm", "ffn_norm"):
            state[f"{prefix}{name}.weight"] = ones.clone()
    torch.save(state, folder / "consolidated.00.pth")
    params = {
        "dim": DIM,
        "multiple_of": 256,
        "n_heads": HEADS,
        "n_layers": layers,
        "norm_eps": 1e-6,
        "vocab_size": -1,
    }
    (folder / "params.json").write_text(json.dumps(params))
    write_tokenizer(folder / "tokenizer.model", vocabulary)


def make_adapter(folder: Path, layers: int, rank: int, rows: int) -> None:
    """Writes an adapter in the format of 2023, with embeddings of `rows` rows unless 0."""
    folder.mkdir(parents=True)
    numbers = Numbers(rank)
    state = {}
    for layer in range(layers):
        for name, (out, width) in PROJECTIONS.items():
            prefix = f"base_model.model.model.layers.{layer}.{name}"
            state[f"{prefix}.lora_A.weight"] = numbers.tensor(rank, width)
            state[f"{prefix}.lora_B.weight"] = numbers.tensor(out, rank)
    replaced = ["embed_tokens", "lm_head"] if rows else []
    for name in ("model.embed_tokens", "lm_head") if rows else ():
        state[f"base_model.model.{name}.weight"] = numbers.tensor(rows, DIM)
    torch.save(state, folder / "adapter_model.bin")
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 32, "inference_mode": True,
        "target_modules": [name.rsplit(".", 1)[1] for name in PROJECTIONS],
        "modules_to_save": replaced or None,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "rows.json").write_text(json.dumps(rows))
    write_tokenizer(folder / "tokenizer.model", rows or VOCABULARY)


def write_tokenizer(path: Path, size: int) -> None:
    """Writes a SentencePiece file of `size` pieces whose first ones are those of the smaller files."""
    model = sentencepiece.ModelProto()
    for index, piece in enumerate(("<unk>", "<s>", "</s>")):
        model.pieces.add(piece=piece, score=0.0, type=2 if index == 0 else 3)
    for index in range(3, size):
        model.pieces.add(piece=f"▁piece{index}", score=-float(index), type=1)
    model.trainer_spec.model_type = 2
    model.trainer_spec.vocab_size = size
    path.write_bytes(model.SerializeToString())
