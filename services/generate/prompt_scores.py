"""Log-probabilities of a prompt's own tokens, from the forward passes that read the prompt."""

from collections.abc import Sequence

import torch
from transformers import Cache, DynamicCache

from services.errors import NonFiniteLogits
from services.generate.loading import LoadedModel
from services.generate.perplexity import CHUNK_TOKENS, read_chunk
from services.generate.sampler import Choice, choice_of


@torch.inference_mode()
def read_scored_prompt(
    loaded: LoadedModel, token_ids: Sequence[int], top: int
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
        chunk = read_chunk(loaded, token_ids[start:end], cache, at=start, kept=end - start)
        logits = chunk.cpu()
        _check_finite(logits, start)
        scored = token_ids[start + 1 : end + 1]
        for row, token_id in zip(logits[: len(scored)].log_softmax(-1), scored, strict=True):
            choices.append(choice_of(row, token_id, top))
    return logits[-1], cache, choices


def _check_finite(logits: torch.Tensor, start: int) -> None:
    wrong = (~logits.isfinite()).any(dim=-1)
    if bool(wrong.any()):
        position = start + int(wrong.nonzero()[0]) + 1
        raise NonFiniteLogits(
            f"The model computed NaN or infinity after token {position} of the prompt.",
            "Its weights are damaged, or float16 overflows: verify the model, or load it as float32 or bfloat16.",
        )
