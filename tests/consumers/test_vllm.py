"""Models that were merged here, generated from by vLLM."""

import copy
from pathlib import Path

import torch
from peft import PeftModel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from services.merge import merge
from services.tokenizers import complete_tokenizer, load_tokenizer
from tests.consumers.engines import vllm
from tests.miniature import MINIATURE
from tests.reference.families import randomize, save_tiny_adapter

PROMPTS = ["What is the capital of China?", "The sky", "Hello world, it is", "one two three four"]


def test_a_merged_sentencepiece_model_gives_the_text_of_the_merge_by_peft(tmp_path: Path) -> None:
    """The tokens that vLLM generates are those of transformers' greedy search on PEFT's own merge."""
    base = save_base(tmp_path / "base")
    adapter = save_tiny_adapter(tmp_path / "adapter", base, lora_alpha=4)
    (tmp_path / "merged").mkdir()
    merge(tmp_path / "base", [("adapter", adapter, 1.0)], tmp_path / "merged")
    complete_tokenizer(tmp_path / "merged")
    reference = PeftModel.from_pretrained(copy.deepcopy(base), adapter).merge_and_unload()
    outputs = vllm(tmp_path / "merged", prompts=PROMPTS, max_tokens=16, ignore_eos=True)
    tokenizer = load_tokenizer(tmp_path / "merged")
    for prompt, output in zip(PROMPTS, outputs, strict=True):
        assert output["prompt_token_ids"] == tokenizer.encode(prompt)
        assert output["token_ids"] == greedy(reference, output["prompt_token_ids"], 16)
        assert output["token_ids"] != greedy(base, output["prompt_token_ids"], 16)


def save_base(folder: Path) -> PreTrainedModel:
    """Saves a random model with the miniature's tokenizer; vLLM's attention on CPUs takes heads of 32."""
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=608, hidden_size=128, intermediate_size=224, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=512,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    randomize(model)
    model.save_pretrained(folder)
    (folder / "tokenizer.model").write_bytes((MINIATURE / "llama/tokenizer.model").read_bytes())
    return model


def greedy(model: PreTrainedModel, prompt: list[int], tokens: int) -> list[int]:
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(tokens):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]
