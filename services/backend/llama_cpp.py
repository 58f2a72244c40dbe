"""Settings of a request under the names of llama.cpp's own endpoint `/completion`, with the meaning that they have here.

Sources: ggml-org/llama.cpp `tools/server/README.md`, `common/sampling.cpp`, `src/llama-sampler.cpp`.
"""

from typing import Any

from services.backend.dialects import extra_fields
from services.errors import UnsupportedOption
from services.sampling import Sampling

ALTERNATIVE = "convert the model to huggingface, which the engine graftwerk runs"

GREEDY = ("penalties", "temperature")
DRAWN = ("penalties", "top_k", "temperature", "top_p", "min_p", "typ_p")
"""Order of the reference engine (services/generate/sampler.py); llama.cpp's own has the temperature last."""


def llama_cpp_fields(sampling: Sampling) -> dict[str, Any]:
    """Returns the fields of the settings.

    Raises:
        UnsupportedOption: llama.cpp does not have one of them, or means something else by it; the message names it.
    """
    _check(sampling)
    own = sampling.model_copy(update={"stop_token_ids": None})  # ends are found here
    extra = extra_fields(own, "llamacpp", server="llama.cpp", alternative=ALTERNATIVE)
    return {
        "temperature": 0 if sampling.greedy else sampling.temperature,
        "top_p": sampling.top_p,
        "logit_bias": [[token, bias] for token, bias in sampling.logit_bias.items()],
        "samplers": GREEDY if sampling.greedy else DRAWN,
        **extra,
    }


def check_forms(*, drops_spaces: bool) -> None:
    """Refuses a grammar where llama.cpp reads tokens otherwise than they are written.

    Its grammar library gets each token as a text of its own, whose first space a SentencePiece model takes off.

    Args:
        drops_spaces: The tokenizer takes off a space at the beginning of a text.

    Raises:
        UnsupportedOption.
    """
    if drops_spaces:
        raise UnsupportedOption(
            "response_format and guided_regex are not available for this GGUF model: llama.cpp enforces forms without the spaces at "
            "the beginning of its SentencePiece tokens.",
            f"Leave them out, or {ALTERNATIVE}.",
        )


def _check(sampling: Sampling) -> None:
    for name in ("presence_penalty", "frequency_penalty"):
        if getattr(sampling, name):
            raise UnsupportedOption(
                f"llama.cpp counts the prompt's tokens in {name}, which here counts those of the output; the request sets it to "
                f"{getattr(sampling, name)}.",
                f"Set sampling.{name} to 0, or {ALTERNATIVE}.",
            )
    if sampling.logit_bias and sampling.repetition_penalty != 1:
        raise UnsupportedOption(
            "llama.cpp adds logit_bias before the repetition penalty and not after it; the request has both.",
            f"Set sampling.repetition_penalty to 1, or {ALTERNATIVE}.",
        )
