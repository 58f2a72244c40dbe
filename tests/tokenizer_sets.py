"""Tokenizers of every kind: small ones of our own, and the published ones where they are at hand.

The published files are not part of the project. Tests marked `published` are deselected where they are missing.
"""

from dataclasses import dataclass
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PUBLISHED_FOLDER = TESTS.parents[1] / "shared" / "data" / "tokenizers"


@dataclass(frozen=True, kw_only=True)
class TokenizerSet:
    """A LLaMA tokenizer, a Chinese addition, the two extended tokenizers, and a Llama 3 tokenizer.

    `hello`, `world`, `space`, `a` and `b` are the ids of `▁Hello`, `▁world`, `▁`, `▁a` and `▁b`; `merges` is the number of
    ways in which Llama 3's tokens can be split into two tokens; `sample_tokens` the tokens of one Chinese sentence with
    LLaMA's tokenizer and with the extended one.
    """

    folder: Path
    base: int
    addition: int
    added: int
    hello: int
    world: int
    space: int
    a: int
    b: int
    ranks: int
    merges: int
    sample_tokens: tuple[int, int]

    def file(self, name: str) -> Path:
        """Returns the path of one tokenizer: `llama`, `chinese_sp`, `chinese-llama`, `chinese-alpaca` or `llama3`."""
        return self.folder / f"{name}.model"

    @property
    def chinese(self) -> int:
        """Pieces of `chinese-llama`."""
        return self.base + self.added


OURS = TokenizerSet(
    folder=TESTS / "fixtures" / "tokenizers",
    base=700,
    addition=480,
    added=457,
    hello=308,
    world=344,
    space=647,
    a=265,
    b=286,
    ranks=656,
    merges=425,
    sample_tokens=(49, 22),
)
PUBLISHED = TokenizerSet(
    folder=PUBLISHED_FOLDER,
    base=32000,
    addition=20000,
    added=17953,
    hello=15043,
    world=3186,
    space=29871,
    a=263,
    b=289,
    ranks=128000,
    merges=280147,
    sample_tokens=(17, 8),
)
TOKENIZER_SETS = [
    pytest.param(OURS, id="ours"),
    pytest.param(PUBLISHED, id="published", marks=pytest.mark.published),
]
