"""Log-probabilities of a prompt's own tokens, from the forward passes that read the prompt."""

from collections.abc import Sequence

import torch
from transformers import Cache, DynamicCache, PreTrainedModel

from services.errors import NonFiniteLogits
from services.generate.sampler import Choice, choice_of

CHUNK_TOKENS = 128
"""Tokens per forward pass: with a vocabulary of 128 k, their logits take 64 MiB in float32."""


@torch.inference_mode()
def read_scored_prompt(
    model: PreTrainedModel, token_ids: Sequence[int], top: int
) -> tuple[torch.Tensor, Cache, list[Choice]]:
    """Returns the logits (vocabulary,) after a prompt in float32 on the CPU, its cache, and the score of each token.

    The scores are log-softmax of the model's logits in float32. The first token has none: nothing is before it.

    Args:
        top: Number of most likely tokens that each score carries.

    Raises:
        NonFiniteLogits: the model computed NaN or infinity.
    """
    cache = DynamicCache()
    choices = [Choice(token_ids[0])]
    logits = torch.empty(0)
    for start in range(0, len(token_ids), CHUNK_TOKENS):
        end = min(start + CHUNK_TOKENS, len(token_ids))
        logits = _forward(model, token_ids[start:end], cache, start)
        _check_finite(logits, start)
        scored = token_ids[start + 1 : end + 1]
        for row, token_id in zip(logits[: len(scored)].log_softmax(-1), scored, strict=True):
            choices.append(choice_of(row, token_id, top))
    return logits[-1], cache, choices


def _forward(model: PreTrainedModel, token_ids: Sequence[int], cache: DynamicCache, at: int) -> torch.Tensor:
    outcome = model(
        input_ids=torch.tensor([list(token_ids)], device=model.device),
        position_ids=torch.arange(at, at + len(token_ids), device=model.device)[None],
        past_key_values=cache,
        use_cache=True,
    )
    logits: torch.Tensor = outcome.logits[0]
    return logits.to("cpu", torch.float32)


def _check_finite(logits: torch.Tensor, start: int) -> None:
    wrong = (~logits.isfinite()).any(dim=-1)
    if bool(wrong.any()):
        position = start + int(wrong.nonzero()[0]) + 1
        raise NonFiniteLogits(
            f"The model computed NaN or infinity after token {position} of the prompt.",
            "Its weights are damaged, or float16 overflows: verify the model, or load it as float32 or bfloat16.",
        )
