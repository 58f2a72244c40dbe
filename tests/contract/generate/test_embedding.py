"""Embeddings against transformers' hidden states."""

from typing import Any

import pytest
import torch

from services.errors import (
    PromptTooLong,
)
from services.generate import (
    LoadedModel,
    embed,
)
from tests.contract.generate.engine_driver import CONTEXT


def test_embeddings_are_the_normalised_mean_of_the_last_states(
    loaded: LoadedModel, reference: Any, prompts: list[list[int]]
) -> None:
    vectors = embed(loaded, prompts[:2])
    for vector, prompt in zip(vectors, prompts, strict=False):
        with torch.inference_mode():
            states = reference.model(torch.tensor([prompt])).last_hidden_state[0]
        expected = states.mean(0) / states.mean(0).norm()
        assert vector == pytest.approx(expected.tolist(), abs=1e-6)
    with pytest.raises(PromptTooLong):
        embed(loaded, [[1] * (CONTEXT + 1)])
