"""Adapters made and merged by PEFT itself: what our merges are compared with, bit for bit."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from tests.reference.tokenizer_files import piece_names, sentencepiece_file

State = dict[str, torch.Tensor]

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def random_model(dtype: torch.dtype, *, vocabulary: int = 101, tied: bool = False) -> LlamaForCausalLM:
    """A model whose sizes do not coincide: 3 layers, 8 heads, 4 key-value heads, head_dim 6."""
    torch.manual_seed(11)
    config = LlamaConfig(
        hidden_size=48,
        intermediate_size=140,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=4,
        vocab_size=vocabulary,
        max_position_embeddings=256,
        tie_word_embeddings=tied,
        initializer_range=0.3,
    )
    model = LlamaForCausalLM(config).to(dtype)
    model.config.dtype = dtype
    return model.eval()


def save_model(
    model: LlamaForCausalLM, folder: Path, *, ending: str = "safetensors", shards: int = 1
) -> Path:
    """The folder as transformers 4 wrote it: `ending` "safetensors" or "bin", one file or shards with an index."""
    folder.mkdir(parents=True)
    model.config.save_pretrained(folder)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    stem = "model" if ending == "safetensors" else "pytorch_model"
    write = save_file if ending == "safetensors" else torch.save
    names = list(state)
    if shards == 1:
        write(state, folder / f"{stem}.{ending}")
    else:
        where = {
            name: f"{stem}-{1 + i % shards:05d}-of-{shards:05d}.{ending}" for i, name in enumerate(names)
        }
        for file in sorted(set(where.values())):
            write({name: state[name] for name in names if where[name] == file}, folder / file)
        index = {"metadata": {}, "weight_map": where}
        (folder / f"{stem}.{ending}.index.json").write_text(json.dumps(index))
    write_tokenizer(folder, model.config.vocab_size)
    return folder


def write_tokenizer(folder: Path, pieces: int) -> None:
    (folder / "tokenizer.model").write_bytes(sentencepiece_file(piece_names(pieces)))


def make_adapter(folder: Path, *, seed: int, vocabulary: int = 101, **options: Any) -> Path:
    """A LoRA adapter with random halves, saved by PEFT; saved modules of `vocabulary` rows are random as well."""
    model = random_model(torch.float32, vocabulary=vocabulary)
    settings = {"r": 8, "lora_alpha": 16, "target_modules": PROJECTIONS, "task_type": "CAUSAL_LM", **options}
    peft_model = get_peft_model(model, LoraConfig(**settings))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in peft_model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    peft_model.save_pretrained(folder, save_embedding_layers=False)
    return folder


def rewrite_weights(folder: Path, *, ending: str = "safetensors", inner_name: str | None = None) -> Path:
    """The same adapter as another file: of the other kind, or with the adapter's name inside its keys."""
    path = folder / "adapter_model.safetensors"
    state = load_file(path)
    path.unlink()
    if inner_name is not None:
        state = {_named(key, inner_name): tensor for key, tensor in state.items()}
    if ending == "bin":
        torch.save(state, folder / "adapter_model.bin")
    else:
        save_file(state, path)
    return folder


def _named(key: str, name: str) -> str:
    for half in ("lora_A", "lora_B", "modules_to_save"):
        key = key.replace(f".{half}.", f".{half}.{name}.")
    return key


def peft_merged(
    model: LlamaForCausalLM, adapters: Sequence[Path], *, scales: Sequence[float] | None = None
) -> State:
    """The state after merging the adapters one after another with PEFT, each tensor in the model's own dtype."""
    dtype = model.dtype
    for folder, scale in zip(adapters, scales or [1.0] * len(adapters), strict=True):
        rows = _saved_rows(folder)
        if rows is not None and rows != model.config.vocab_size:
            model.resize_token_embeddings(rows, mean_resizing=False)
        peft_model = PeftModel.from_pretrained(model, folder, config=_config(folder))
        for module in peft_model.modules():
            if hasattr(module, "set_scale"):
                module.set_scale("default", scale)
        model = peft_model.merge_and_unload()
    return {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}


def _config(folder: Path) -> LoraConfig:
    """PEFT's configuration; the keys of 2023 that it no longer has are null or false and are left out."""
    raw = json.loads((folder / "adapter_config.json").read_text())
    known = LoraConfig.__dataclass_fields__
    dropped: Mapping[str, Any] = {key: value for key, value in raw.items() if key not in known}
    assert not any(dropped.values()), dropped
    return LoraConfig(**{key: value for key, value in raw.items() if key in known and value is not None})


def _saved_rows(folder: Path) -> int | None:
    safetensors = folder / "adapter_model.safetensors"
    state = (
        load_file(safetensors)
        if safetensors.exists()
        else torch.load(folder / "adapter_model.bin", weights_only=True)
    )
    rows = [tensor.shape[0] for key, tensor in state.items() if key.endswith("embed_tokens.weight")]
    return rows[0] if rows else None
