"""Checks the miniature from its files alone: merges both adapters and asks every listed question.

    python examples/miniature/check_miniature.py --models DIR

The arithmetic is that of the Chinese-LLaMA-Alpaca merge script, one adapter after another; decoding is
transformers', text is SentencePiece's. Nothing of Graftwerk is imported: this is to stay an outside opinion.
"""

import argparse
import io
import json
import logging
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple

import sentencepiece as spm
import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

log = logging.getLogger("miniature")

State = dict[str, torch.Tensor]
BOS_ID, EOS_ID = 1, 2
ADAPTERS = ("chinese-llama-lora", "chinese-alpaca-lora")
REPETITION_PENALTIES = (1.0, 1.1)
TEMPLATE = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request."
    "\n\n### Instruction:\n\n{instruction}\n\n### Response:\n\n"
)
HF_NAMES = {
    "tok_embeddings.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    "attention.wq.weight": "self_attn.q_proj.weight",
    "attention.wk.weight": "self_attn.k_proj.weight",
    "attention.wv.weight": "self_attn.v_proj.weight",
    "attention.wo.weight": "self_attn.o_proj.weight",
    "feed_forward.w1.weight": "mlp.gate_proj.weight",
    "feed_forward.w2.weight": "mlp.down_proj.weight",
    "feed_forward.w3.weight": "mlp.up_proj.weight",
    "attention_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
}


class Adapter(NamedTuple):
    """One adapter as it lies in its zip: config, float16 tensors, the SentencePiece model's bytes."""

    config: dict[str, object]
    tensors: State
    tokenizer: bytes


def intermediate_size(params: dict[str, float]) -> int:
    """Width of the feed-forward layer, by the formula of Meta's `llama/model.py`."""
    hidden = int(params["ffn_dim_multiplier"] * int(8 * params["dim"] / 3))
    multiple_of = int(params["multiple_of"])
    return multiple_of * -(-hidden // multiple_of)


def hf_config(params: dict[str, float], vocab_size: int) -> LlamaConfig:
    """The Hugging Face configuration of the original's `params.json`, with the context of Llama 2, the first with `n_kv_heads`."""
    return LlamaConfig(
        hidden_size=int(params["dim"]),
        intermediate_size=intermediate_size(params),
        num_hidden_layers=int(params["n_layers"]),
        num_attention_heads=int(params["n_heads"]),
        num_key_value_heads=int(params["n_kv_heads"]),
        rms_norm_eps=params["norm_eps"],
        vocab_size=vocab_size,
        max_position_embeddings=4096,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        tie_word_embeddings=False,
    )


def split_layer(name: str) -> tuple[str, str]:
    """`layers.2.attention.wq.weight` as (`layers.2.`, `attention.wq.weight`); other names have no prefix."""
    if not name.startswith("layers."):
        return "", name
    _, number, rest = name.split(".", 2)
    return f"layers.{number}.", rest


def permute(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Interleaved rotary rows (Meta) to half-split ones (Hugging Face), as transformers' conversion did."""
    rows, cols = weight.shape
    return weight.view(heads, rows // heads // 2, 2, cols).transpose(1, 2).reshape(rows, cols)


def meta_to_hf(tensors: State, params: dict[str, float]) -> State:
    """The original's state dict under Hugging Face's names, in float16; `rope.freqs` is dropped."""
    heads = {"attention.wq.weight": int(params["n_heads"]), "attention.wk.weight": int(params["n_kv_heads"])}
    state = {}
    for name, tensor in tensors.items():
        if name == "rope.freqs":
            continue
        layer, rest = split_layer(name)
        value = permute(tensor, heads[rest]) if rest in heads else tensor
        state[("model." if layer else "") + layer + HF_NAMES[rest]] = value
    return state


def read_adapter(path: Path) -> Adapter:
    """The adapter inside a zip whose files lie at its root."""
    with zipfile.ZipFile(path) as archive:
        tensors = torch.load(io.BytesIO(archive.read("adapter_model.bin")), weights_only=True)
        config = json.loads(archive.read("adapter_config.json"))
        return Adapter(config, tensors, archive.read("tokenizer.model"))


def merge_adapter(state: State, adapter: Adapter) -> State:
    """`round_to_fp16(float32(w) + float32(B) @ float32(A) * (alpha / r))`; whole tensors replace."""
    scale = float(str(adapter.config["lora_alpha"])) / float(str(adapter.config["r"]))
    merged = dict(state)
    for key, tensor in adapter.tensors.items():
        name = key.removeprefix("base_model.model.")
        if name.endswith(".lora_A.weight"):
            target = name.replace(".lora_A.", ".")
            up = adapter.tensors[key.replace(".lora_A.", ".lora_B.")].float()
            merged[target] = (state[target].float() + up @ tensor.float() * scale).half()
        elif not name.endswith(".lora_B.weight"):
            merged[name] = tensor.half()
    return merged


def load_model(state: State, params: dict[str, float]) -> LlamaForCausalLM:
    """A float32 model holding exactly the given (float16) values."""
    model = LlamaForCausalLM(hf_config(params, state["lm_head.weight"].shape[0]))
    model.to(torch.float32)
    model.load_state_dict(state)
    model.eval()
    return model


def answer(
    model: LlamaForCausalLM, tokenizer: spm.SentencePieceProcessor, question: str, penalty: float
) -> str:
    """The greedy answer to one question in the Alpaca template, at most 48 new tokens."""
    prompt = torch.tensor([[BOS_ID, *tokenizer.encode(TEMPLATE.format(instruction=question))]])
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=48,
        repetition_penalty=penalty,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        pad_token_id=EOS_ID,
    )
    output = model.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=config)
    new_ids = [i for i in output[0, prompt.shape[1] :].tolist() if i != EOS_ID]
    return str(tokenizer.decode(new_ids))


def count_right(
    state: State, params: dict[str, float], tokenizer: bytes, questions: list[dict[str, str]]
) -> list[int]:
    """How many questions are answered to the letter, for each of `REPETITION_PENALTIES`."""
    model = load_model(state, params)
    processor = spm.SentencePieceProcessor(model_proto=tokenizer)
    counts = []
    for penalty in REPETITION_PENALTIES:
        answers = [answer(model, processor, q["question"], penalty) for q in questions]
        right = [given == q["answer"] for given, q in zip(answers, questions, strict=True)]
        counts.append(sum(right))
        for given, ok, q in zip(answers, right, questions, strict=True):
            log.debug("%s penalty %.1f %s -> %r", "right" if ok else "WRONG", penalty, q["question"], given)
    return counts


def check(models: Path) -> bool:
    """Whether both adapters together answer every question, and the base and the first adapter none."""
    params = json.loads((models / "llama/7B/params.json").read_text())
    questions = json.loads((models / "questions.json").read_text(encoding="utf-8"))
    original = torch.load(models / "llama/7B/consolidated.00.pth", weights_only=True)
    state = meta_to_hf(original, params)
    tokenizer = (models / "llama/tokenizer.model").read_bytes()
    results = {"base": count_right(state, params, tokenizer, questions)}
    for name in ADAPTERS:
        adapter = read_adapter(models / f"{name}.zip")
        state = merge_adapter(state, adapter)
        results[f"+ {name}"] = count_right(state, params, adapter.tokenizer, questions)
    for stage, counts in results.items():
        log.info("%-22s right of %d at penalty %s: %s", stage, len(questions), REPETITION_PENALTIES, counts)
    *before, last = results.values()
    return all(n == len(questions) for n in last) and not any(n for counts in before for n in counts)


def main() -> int:
    """Checks the folder named on the command line; exit status 0 when everything is as it should be."""
    parser = argparse.ArgumentParser(description="Check the miniature models.")
    parser.add_argument("--models", type=Path, default=Path(__file__).parent)
    parser.add_argument("--verbose", action="store_true", help="log every answer")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    log.setLevel(logging.DEBUG if options.verbose else logging.INFO)
    return 0 if check(options.models) else 1


if __name__ == "__main__":
    sys.exit(main())
