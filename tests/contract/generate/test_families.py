"""Generation, perplexity and embeddings of each family, against transformers' own on tiny random models."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from services.errors import UnsupportedOption
from services.generate import (
    GenerationRequest,
    LoadedModel,
    Window,
    embed,
    kv_cache,
    load_model,
    score_window,
)
from services.generate.masks import MASK_BY_LAYER, ONE_MASK
from services.sampling import Sampling
from tests.contract.generate.engine_driver import run
from tests.reference.families import OPTIONS, save_tiny

LENGTHS = (3, 20, 11, 1, 26)
"""Lengths of prompts, shorter and longer than a chunk of 8 tokens and than the window of 16."""

CONTEXTS = {"phi3": 32}
"""Contexts that are not the configured 128: longrope changes its frequencies after 32 tokens."""


def prompt(length: int) -> list[int]:
    return [(7 * length + 13 * number) % 250 for number in range(length)]


@pytest.fixture(scope="module", params=sorted(OPTIONS))
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp(request.param)
    save_tiny(request.param, folder, dtype=torch.float32)
    return request.param, folder


@pytest.fixture(scope="module")
def loaded(tiny: tuple[str, Path]) -> LoadedModel:
    return load_model(tiny[1])


@pytest.fixture(scope="module")
def reference(tiny: tuple[str, Path]) -> Any:
    """The model as transformers loads it; the eager attention does all that a family has."""
    return AutoModelForCausalLM.from_pretrained(tiny[1], attn_implementation="eager").eval()


def test_the_context_is_not_cut_to_the_window(tiny: tuple[str, Path], loaded: LoadedModel) -> None:
    assert loaded.context_length == CONTEXTS.get(tiny[0], 128)


def test_greedy_text_in_a_batch_is_that_of_transformers(
    tiny: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A head of its own, since random models with a tied one repeat a token for ever; rows in several groups."""
    monkeypatch.setattr(kv_cache, "BLOCK", 8)
    reference: Any = save_tiny(tiny[0], tmp_path, tied=False, dtype=torch.float32, seed=3)
    reference.set_attn_implementation("eager")
    loaded = load_model(tmp_path)
    new = 6 if loaded.context_length < 64 else 30
    requests = [
        GenerationRequest(prompt(length), Sampling(temperature=0, repetition_penalty=1, max_new_tokens=new))
        for length in LENGTHS
    ]
    found = run(loaded, requests, chunk=8)
    ends = sorted(loaded.tokenizer.eos_ids)
    for request in requests:
        ids = torch.tensor([list(request.prompt_token_ids)])
        with torch.no_grad():
            expected = reference.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=new,
                eos_token_id=ends,
                pad_token_id=0,
            )[0, ids.shape[1] :]
        assert found[request.id][0].token_ids == expected.tolist()
    assert len({token for outputs in found.values() for token in outputs[0].token_ids}) > 15


def test_beams_of_a_prompt_in_chunks_are_those_of_transformers(
    tiny: tuple[str, Path], tmp_path: Path
) -> None:
    """Keys and values of the prompt are handed on, to sliding layers only those within the window of 16."""
    reference: Any = save_tiny(tiny[0], tmp_path, tied=False, dtype=torch.float32, seed=3)
    reference.set_attn_implementation("eager")
    loaded = load_model(tmp_path)
    new = 6 if loaded.context_length < 64 else 20
    sampling = Sampling(num_beams=3, n=2, do_sample=False, repetition_penalty=1, max_new_tokens=new)
    requests = [GenerationRequest(prompt(length), sampling) for length in LENGTHS]
    found = run(loaded, requests, chunk=8)
    ends = loaded.tokenizer.eos_ids
    for request in requests:
        ids = torch.tensor([list(request.prompt_token_ids)])
        with torch.no_grad():
            expected = reference.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                num_beams=3,
                num_return_sequences=2,
                do_sample=False,
                max_new_tokens=new,
                eos_token_id=sorted(ends),
                pad_token_id=0,
            )[:, ids.shape[1] :].tolist()
        for output, beam in zip(found[request.id], expected, strict=True):
            assert beam[: len(output.token_ids)] == output.token_ids
            assert output.token_ids[-1] in ends or len(output.token_ids) == new


def test_the_score_of_a_window_is_that_of_the_whole_models_logits(
    loaded: LoadedModel, reference: Any
) -> None:
    ids = prompt(30)
    with torch.no_grad():
        likely = reference(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    expected = -sum(float(likely[at - 1, ids[at]]) for at in range(1, 30))
    assert score_window(loaded, ids, Window(0, 1, 30)).total == pytest.approx(expected, rel=1e-4)


def test_an_embedding_is_the_mean_of_the_last_hidden_states(loaded: LoadedModel, reference: Any) -> None:
    ids = prompt(30)
    with torch.no_grad():
        states = reference(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0]
    expected = torch.nn.functional.normalize(states.mean(dim=0), dim=0)
    assert torch.allclose(torch.tensor(embed(loaded, [ids])[0]), expected, atol=1e-5)


def test_only_the_text_model_is_loaded(loaded: LoadedModel) -> None:
    names = {name for name, _ in loaded.model.named_parameters()}
    assert not [name for name in names if "vision" in name or "projector" in name]
    assert loaded.rows == 300


def test_every_end_of_generation_config_ends_an_output(tiny: tuple[str, Path], tmp_path: Path) -> None:
    for path in tiny[1].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    ends = [5, 17]
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}), encoding="utf-8")
    assert load_model(tmp_path).tokenizer.eos_ids >= set(ends)


@pytest.mark.parametrize("model_type", ["gemma3_text", "gemma3"])
def test_several_rotary_bases_are_not_scaled(model_type: str, tmp_path: Path) -> None:
    save_tiny(model_type, tmp_path)
    with pytest.raises(UnsupportedOption, match="one for each type of layer"):
        load_model(tmp_path, rope_alpha=2)


@pytest.mark.parametrize("model_type", [*MASK_BY_LAYER, *ONE_MASK])
def test_the_masks_are_those_that_the_class_makes(model_type: str) -> None:
    """A class that took its masks otherwise would fail here, also one that has no family."""
    options = dict(OPTIONS.get(model_type, OPTIONS["mistral"]))
    config = AutoConfig.for_model(model_type, **{**options, "vocab_size": 300, "pad_token_id": 0})
    model: Any = AutoModelForCausalLM.from_config(config)
    seen: list[Any] = []
    model.base_model.layers[0].register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["attention_mask"]), with_kwargs=True
    )
    one = torch.zeros(1, 1, 1, 1)
    by_layer = {"full_attention": one, "sliding_attention": one + 1}
    given = by_layer if model_type in MASK_BY_LAYER else one
    model(input_ids=torch.tensor([[1]]), attention_mask=given, use_cache=False)
    assert seen[0] is (by_layer[config.layer_types[0]] if model_type in MASK_BY_LAYER else one)
