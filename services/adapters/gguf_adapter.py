"""Adapters as GGUF files: which of them the format holds, and in what numbers.

llama.cpp adds `alpha / r * B @ A` to a matrix, with one alpha for the whole file and the rank of each pair (ggml-org/llama.cpp
`src/llama-adapter.cpp`, `convert_lora_to_gguf.py`).
"""

from collections import Counter
from dataclasses import dataclass
from math import prod

from services.adapters.adapter import Adapter
from services.adapters.lora_tensors import LoraPair
from services.architectures.checkpoint import Checkpoint
from services.architectures.gguf_support import check_family
from services.errors import UnsupportedAdapter, UnsupportedOption
from services.files.tensors import size_of

ADAPTER_DTYPES = (None, "F32", "F16", "BF16")
"""Dtypes of the halves: None keeps their own."""


@dataclass(frozen=True, slots=True)
class GgufAdapter:
    """An adapter that GGUF holds: `alpha` of the file; `adapter` has the names of the base's tensors."""

    base: Checkpoint
    adapter: Adapter
    alpha: float
    dtype: str | None

    def factor(self, pair: LoraPair) -> float:
        """Returns the number by which B is multiplied, since a file has one alpha only; 1 for most adapters."""
        return pair.scaling * pair.rank / self.alpha

    def dtype_of(self, pair: LoraPair, half: str) -> str:
        """Returns the dtype of a pair's half "a" or "b": float32 where it is multiplied."""
        if half == "b" and self.factor(pair) != 1:
            return "F32"
        own = getattr(pair, half).dtype
        return self.dtype or ("F32" if own == "F64" else own)

    @property
    def size_bytes(self) -> int:
        """Bytes of all halves as they are written."""
        return sum(
            size_of(self.dtype_of(pair, half), prod(getattr(pair, half).shape))
            for pair in self.adapter.pairs.values()
            for half in ("a", "b")
        )


def gguf_adapter(base: Checkpoint, adapter: Adapter, dtype: str | None) -> GgufAdapter:
    """Returns what is written of an adapter whose tensors have the base's names.

    Raises:
        UnsupportedAdapter: It changes the base by more than pairs of factors of linear layers.
        UnsupportedFormat: GGUF files of the base's family are not written.
        UnsupportedOption: The dtype is an encoding in blocks.
    """
    if dtype not in ADAPTER_DTYPES:
        raise UnsupportedOption(
            f"The factors of an adapter are not stored as {dtype}.",
            'Ask for "float32", "float16" or "bfloat16".',
        )
    check_family(base.config, adapter.pairs)
    others = {
        "modules that are saved whole": adapter.replaced, "trained rows of tokens": adapter.rows,
        "layers of another kind than LoRA": adapter.layers,
        "pairs of an embedding": [name for name, pair in adapter.pairs.items() if pair.transposed],
        "pairs of a head that the base ties": [name for name in adapter.pairs if name not in base.tensors],
    }  # fmt: skip
    for what, names in others.items():
        if names:
            raise UnsupportedAdapter(
                f"Adapter {adapter.name} has {what} ({sorted(names)[0]!r} the first); a GGUF adapter holds LoRA pairs of the base's "
                "linear layers only.",
                "Merge it into the base, and convert that model to GGUF.",
            )
    alphas = Counter(pair.scaling * pair.rank for pair in adapter.pairs.values())
    [(alpha, _)] = alphas.most_common(1)
    return GgufAdapter(base, adapter, alpha, dtype)
