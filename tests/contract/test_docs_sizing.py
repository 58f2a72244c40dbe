"""docs/sizing.md: its shapes and sizes are those of transformers' classes, its formulas those of the plans."""

import re
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

PAGE = (Path(__file__).parents[2] / "docs" / "sizing.md").read_text(encoding="utf-8")
FAMILIES = {"Qwen2": "qwen2", "Qwen3": "qwen3", "Phi-3": "phi3", "Gemma 2": "gemma2", "Mistral": "mistral"}
TIED = {"Llama 3.2 1B", "Llama 3.2 3B", "Qwen2.5 0.5B", "Gemma 2 9B"}
PROCESS_GB = 350 * 2**20 / 1e9


def table(head: str) -> dict[str, list[float]]:
    """Returns the numbers of the table that begins so, by the name of the model."""
    lines = PAGE[PAGE.index(head) :].split("\n\n")[0].splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in lines]
    return {name: [float(cell.replace(",", "")) for cell in cells] for name, *cells in rows}


SIZES = table("| model | parameters (10^9) |")
SHAPES = table("| model | `V` |")


def parameters_of(name: str) -> int:
    """Returns the number of parameters of transformers' class, built without memory."""
    rows, width, layers, heads, kv_heads, head_dim, feed_forward = map(int, SHAPES[name])
    model_type = next((found for prefix, found in FAMILIES.items() if name.startswith(prefix)), "llama")
    config = AutoConfig.for_model(
        model_type,
        vocab_size=rows,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=feed_forward,
        tie_word_embeddings=name in TIED,
        pad_token_id=None,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return sum(parameter.numel() for parameter in model.parameters())


def test_both_tables_have_the_same_models() -> None:
    assert list(SIZES) == list(SHAPES)
    assert len(SIZES) > 15


@pytest.mark.parametrize("name", SIZES)
def test_the_sizes_follow_from_the_shapes(name: str) -> None:
    _, width, layers, heads, kv_heads, head_dim, feed_forward = SHAPES[name]
    parameters = parameters_of(name) / 1e9
    cache = 2 * layers * kv_heads * head_dim * 1000 / 1e9
    widest = width * max(feed_forward, heads * head_dim)
    merge = PROCESS_GB + 16 * widest / 1e9
    computed = [
        parameters,
        parameters * 2,
        parameters * 4,
        parameters * 4.89 / 8,
        cache * 4,
        cache * 2,
        merge,
    ]
    digits = [2, 1, 1, 1, 2, 2, 1]
    assert SIZES[name] == [round(value, places) for value, places in zip(computed, digits, strict=True)]


def test_the_numbers_of_the_tutorial_are_those_of_this_page() -> None:
    for page in ("tutorial.md", "zh/tutorial.md"):
        tutorial = (Path(__file__).parents[2] / "docs" / page).read_text(encoding="utf-8")
        rows = re.findall(
            r"^\| [^|]+ \| ([\d.]+) GB \| (?:([\d.]+) GB)? ?\| ([\d.]+) GB", tutorial, re.MULTILINE
        )
        base, merged = SIZES["LLaMA-7B, Llama 2 7B"], SIZES["Chinese-Alpaca-7B"]
        assert [row[0] for row in rows][:1] == [str(base[1])], page
        assert (str(merged[1]), str(merged[3])) in {(row[0], row[1]) for row in rows}
        assert ("15.5", str(merged[1]), str(merged[6])) in rows
        assert (str(merged[1]), "", str(round(merged[2] + PROCESS_GB, 1))) in rows
