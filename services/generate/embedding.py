"""Text embeddings from a generative model."""

from collections.abc import Sequence
from typing import Any

import torch

from services.errors import NonFiniteLogits, PromptTooLong
from services.generate.loading import LoadedModel
from services.progress import CheckCanceled, never_canceled


def embed(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[int]],
    check_canceled: CheckCanceled = never_canceled,
    *,
    dimensions: int | None = None,
) -> list[list[float]]:
    """Returns the mean of the last layer's hidden states over each prompt's tokens, scaled to length 1.

    The formula is that of `openai_api_server.py` of Chinese-LLaMA-Alpaca. Prompts are not batched. With `dimensions` a vector
    is its first numbers, scaled to length 1.

    Raises:
        PromptTooLong: a prompt is longer than the model's context.
        NonFiniteLogits: the model computed NaN or infinity.
    """
    return [_embedded(loaded, list(token_ids), check_canceled, dimensions) for token_ids in prompts]


@torch.inference_mode()
def _embedded(
    loaded: LoadedModel, token_ids: list[int], check_canceled: CheckCanceled, dimensions: int | None
) -> list[float]:
    check_canceled()
    if len(token_ids) > loaded.context_length:
        raise PromptTooLong(
            f"The text has {len(token_ids)} tokens and the model's context is {loaded.context_length}.",
            "Split the text.",
        )
    body: Any = loaded.model.base_model
    states = body(
        input_ids=torch.tensor([token_ids], device=loaded.device), use_cache=False
    ).last_hidden_state
    mean = states[0].float().mean(dim=0)
    if not bool(mean.isfinite().all()):
        raise NonFiniteLogits("The model computed NaN or infinity for the text.", "Verify the model.")
    vector: list[float] = torch.nn.functional.normalize(mean[:dimensions], dim=0).tolist()
    return vector
