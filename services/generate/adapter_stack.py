"""Stack of adapters on a loaded base: rows of one batch may have different ones."""

from dataclasses import dataclass

from services.generate.guide import GuideMaker
from services.tokenizers import Tokenizer


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class AdapterStack:
    """Adapters in order, with their scales, as the engine applies them to the rows of a batch that have them.

    Attributes:
        identity: Identifies what is computed: only stacks with the same one have the same keys and values for a prompt.
        tokenizer: Tokenizer of the base with these adapters.
        guides: Guides of the tokenizer's vocabulary.
        rows: Number of rows of the embeddings with these adapters; logits of later ids are minus infinity.
    """

    identity: str
    tokenizer: Tokenizer
    guides: GuideMaker
    rows: int
