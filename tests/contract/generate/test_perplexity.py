"""Perplexity against transformers' own loss, against arithmetic by hand, and against a uniform model."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from services.errors import InvalidRequest, JobCanceled, NonFiniteLogits
from services.generate import (
    LoadedModel,
    Window,
    load_model,
    score_window,
    window_sizes,
    windows_of,
)
from services.generate.perplexity import CHUNK_TOKENS
from services.kinds.perplexity import PerplexityRequest, PerplexityResult
from services.progress import Progress
from tests.contract.generate.engine_driver import CONTEXT, VOCABULARY, run_job, score
from tests.corpus import mixed_lines


@pytest.fixture(scope="module")
def text(loaded: LoadedModel) -> list[int]:
    """The tokens of a text that is longer than the model's context."""
    ids = loaded.tokenizer.encode("\n".join(mixed_lines(120)))[:401]
    assert len(ids) == 401
    return ids


def losses_of(model: Any, ids: list[int], window: int, stride: int) -> list[float]:
    """Total nats of each window, as the documentation of transformers computes them with `labels`."""
    totals, previous = [], 0
    for begin in range(0, len(ids), stride):
        end = min(begin + window, len(ids))
        labels = torch.tensor([ids[begin:end]])
        labels[:, : -(end - previous)] = -100
        scored = int((labels[:, 1:] != -100).sum())
        with torch.inference_mode():
            loss = model(torch.tensor([ids[begin:end]]), labels=labels).loss
        totals.append(float(loss) * scored)
        previous = end
        if end == len(ids):
            break
    return totals


def test_one_window_has_the_loss_of_transformers(
    loaded: LoadedModel, reference: Any, text: list[int]
) -> None:
    ids = text[: CHUNK_TOKENS + 21]  # more than one chunk
    assert len(ids) <= CONTEXT
    found = score(loaded, ids)
    with torch.inference_mode():
        loss = float(reference(torch.tensor([ids]), labels=torch.tensor([ids])).loss)
    assert found.tokens == len(ids) - 1
    assert found.mean == pytest.approx(loss, rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(loss), rel=1e-4)


@pytest.mark.parametrize(("window", "stride"), [(160, 80), (160, 37), (150, 149), (7, 1)])
def test_sliding_windows_have_the_losses_of_transformers(
    loaded: LoadedModel, reference: Any, text: list[int], window: int, stride: int
) -> None:
    ids = text if stride > 1 else text[:25]
    expected = losses_of(reference, ids, window, stride)
    found = score(loaded, ids, context=window, stride=stride)
    assert found.tokens == len(ids) - 1
    assert found.total == pytest.approx(sum(expected), rel=1e-5)
    places = windows_of(len(ids), context=window, stride=stride)
    totals = [score_window(loaded, ids, place).total for place in places]
    assert totals == pytest.approx(expected, rel=1e-4)


def test_windows_by_hand() -> None:
    assert windows_of(10, context=4, stride=3) == [Window(0, 1, 4), Window(3, 4, 7), Window(6, 7, 10)]
    assert windows_of(6, context=4, stride=1) == [Window(0, 1, 4), Window(1, 4, 5), Window(2, 5, 6)]
    assert windows_of(2, context=4, stride=2) == [Window(0, 1, 2)]


@pytest.mark.parametrize("tokens", [2, 3, 15, 16, 17, 64, 101])
@pytest.mark.parametrize(("context", "stride"), [(16, 8), (16, 15), (16, 1), (2, 1)])
def test_each_token_but_the_first_is_scored_once_and_has_context(
    tokens: int, context: int, stride: int
) -> None:
    windows = windows_of(tokens, context=context, stride=stride)
    scored = [position for window in windows for position in range(window.scored_from, window.end)]
    assert scored == list(range(1, tokens))
    assert all(window.start < window.scored_from for window in windows)
    assert all(window.end - window.start <= context for window in windows)


def test_the_default_window_is_the_models_context_and_the_default_stride_half_of_it() -> None:
    assert window_sizes(160) == (160, 80)
    assert window_sizes(131072) == (2048, 1024)
    assert window_sizes(131072, context=4096) == (4096, 2048)
    assert window_sizes(160, stride=12) == (160, 12)


@pytest.mark.parametrize(("context", "stride"), [(161, None), (1, None), (8, 8), (None, 160)])
def test_impossible_windows_are_refused(context: int | None, stride: int | None) -> None:
    with pytest.raises(InvalidRequest):
        window_sizes(160, context=context, stride=stride)


def test_a_text_of_one_token_is_refused(loaded: LoadedModel) -> None:
    with pytest.raises(InvalidRequest, match="nothing can be scored"):
        score(loaded, [1])


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary(folder: Path, text: list[int]) -> None:
    blank = load_model(folder)
    head: Any = blank.model.get_output_embeddings()
    torch.nn.init.zeros_(head.weight)
    found = score(blank, text, context=100, stride=60)
    assert found.perplexity == pytest.approx(VOCABULARY, rel=1e-6)
    assert found.mean == pytest.approx(math.log(VOCABULARY), rel=1e-6)
    bits = len(text[1:]) * math.log2(VOCABULARY)
    assert found.bits_per_byte(2000) == pytest.approx(bits / 2000, rel=1e-6)


def test_a_certain_error_has_infinite_perplexity(folder: Path, text: list[int]) -> None:
    sure = load_model(folder)
    head: Any = sure.model.get_output_embeddings()
    with torch.no_grad():
        head.weight.mul_(1e5)
    assert score(sure, text[:50]).perplexity == math.inf


def test_a_model_in_bfloat16_is_scored_in_float32(folder: Path, text: list[int]) -> None:
    half: Any = LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    ids = text[:90]
    with torch.inference_mode():
        rows = half(torch.tensor([ids])).logits[0, :-1].float().log_softmax(-1)
    expected = -sum(float(row[token]) for row, token in zip(rows, ids[1:], strict=True))
    # the two ways to compute a prompt differ by the rounding of bfloat16, about 1 %
    assert score(load_model(folder, dtype="bfloat16"), ids).total == pytest.approx(expected, rel=2e-2)


def test_nan_is_an_error_that_names_the_token(folder: Path, text: list[int]) -> None:
    broken = load_model(folder)
    embeddings: Any = broken.model.get_input_embeddings()
    ids = [1, *[300] * CHUNK_TOKENS, 419, 301]
    with torch.no_grad():
        embeddings.weight[419] = math.nan
    with pytest.raises(NonFiniteLogits, match=f"token {CHUNK_TOKENS + 2} of the text"):
        score(broken, ids)


@pytest.fixture(scope="module")
def written(loaded: LoadedModel) -> str:
    """A text of 401 tokens, as a request has it."""
    whole = "\n".join(line for line in mixed_lines(400) if line.isascii())
    lengths = range(len(whole))
    return next(whole[:end] for end in lengths if len(loaded.tokenizer.encode(whole[:end])) == 401)


def request_of(loaded: LoadedModel, text: str, **windows: int) -> PerplexityRequest:
    return PerplexityRequest(kind="perplexity", model=loaded.folder.name, text=text, **windows)


def test_progress_counts_tokens_and_ends_with_the_last(loaded: LoadedModel, written: str) -> None:
    seen: list[Progress] = []
    run_job(loaded, request_of(loaded, written, context=160, stride=80), report=seen.append)
    assert [progress.done for progress in seen] == [159, 239, 319, 399, 400]
    assert {(progress.stage, progress.total, progress.unit) for progress in seen} == {
        ("scoring", 400, "tokens")
    }


def test_a_score_that_no_float_holds_is_null_in_the_result(folder: Path, written: str) -> None:
    sure = load_model(folder)
    head: Any = sure.model.get_output_embeddings()
    with torch.no_grad():
        head.weight.mul_(1e5)
    result = run_job(sure, request_of(sure, written, context=160))
    assert isinstance(result, PerplexityResult)
    assert result.perplexity is None
    assert result.tokens == 400


def test_canceling_ends_a_job_within_a_window(loaded: LoadedModel, written: str) -> None:
    longer = dataclasses.replace(loaded, context_length=400)
    calls = iter(range(100))

    def check() -> None:
        if next(calls) == 2:
            raise JobCanceled("The job was canceled.")

    seen: list[Progress] = []
    with pytest.raises(JobCanceled):
        run_job(longer, request_of(loaded, written, context=400), report=seen.append, check_canceled=check)
    assert seen == []
    assert next(calls) == 3
