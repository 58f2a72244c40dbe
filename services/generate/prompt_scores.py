"""Log-probabilities of a prompt's own tokens, from the forward passes that read the prompt."""

from collections.abc import Sequence

import torch

from services.errors import NonFiniteLogits
from services.generate.sampler import Choice, choice_of


def scores_of_chunk(logits: torch.Tensor, following: Sequence[int], *, start: int, top: int) -> list[Choice]:
    """Returns the scores of the tokens that follow those of a chunk: log-softmax of the model's logits in float32.

    Args:
        logits: (tokens, vocabulary), float32, after each token of the chunk.
        following: the prompt's token after each of them; none after the prompt's last.
        start: position of the chunk in the prompt.
        top: Number of most likely tokens that each score carries.

    Raises:
        NonFiniteLogits: the model computed NaN or infinity.
    """
    _check_finite(logits, start)
    likely = logits[: len(following)].log_softmax(-1)
    return [choice_of(row, token_id, top) for row, token_id in zip(likely, following, strict=True)]


def _check_finite(logits: torch.Tensor, start: int) -> None:
    if not bool(logits.isfinite().all()):  # a masked NaN spoils its whole chunk
        raise NonFiniteLogits(
            f"The model computed NaN or infinity at tokens {start + 1} to {start + len(logits)} of the prompt.",
            "Its weights are damaged, or float16 overflows: verify the model, or load it as float32 or bfloat16.",
        )
