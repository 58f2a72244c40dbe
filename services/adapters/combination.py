"""Combination of several LoRA adapters into one, from headers alone: do they fit each other, module by module?"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from services.adapters.adapter import Adapter
from services.adapters.lora_tensors import LoraPair
from services.errors import AdapterMismatch, InvalidRequest, UnsupportedAdapter, VocabularyMismatch
from services.files.tensors import TensorHeader

ANY_SIZE = 2**63
"""Limit that no tensor exceeds."""

TOKEN_MODULES = ("embed_tokens", "lm_head")
"""Last part of the names of modules with one row per token."""


@dataclass(frozen=True, slots=True)
class Part:
    """Pair of one adapter: the number of the adapter in the request, its factor, and the pair."""

    position: int
    scale: float
    pair: LoraPair


@dataclass(frozen=True, slots=True)
class CombinedModule:
    """Module that one or more adapters change."""

    name: str
    parts: tuple[Part, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the products B @ A."""
        pair = self.parts[0].pair
        return pair.b.shape[0], pair.a.shape[1]

    @property
    def embedding(self) -> bool:
        """True if the products are changes of an embedding, transposed."""
        return self.parts[0].pair.transposed

    @property
    def rank(self) -> int:
        """Sum of the ranks."""
        return sum(part.pair.rank for part in self.parts)


@dataclass(frozen=True, slots=True)
class WholeTensor:
    """Tensor that replaces the base's: its name, and the header in the file of the adapter that brings it."""

    name: str
    header: TensorHeader

    @property
    def module(self) -> str:
        """Name of its module."""
        return self.name.rpartition(".")[0]


@dataclass(frozen=True, slots=True)
class Combination:
    """Adapters that fit each other: changed modules, replaced tensors, tokenizer.

    Attributes:
        rank: Sum of the ranks of all adapters, with which a sum of their changes is exact.
        tokenizer_folder: Folder with the longest of their tokenizers, None if no adapter has one.
        base_name: Base that the first adapter records.
        tied: One of them keeps head and embedding tied.
        transposed: They were trained on Conv1D modules (`fan_in_fan_out`).
    """

    modules: tuple[CombinedModule, ...]
    whole: tuple[WholeTensor, ...]
    rank: int
    tokenizer_folder: Path | None
    base_name: str | None
    tied: bool
    transposed: bool
    warnings: tuple[str, ...]

    @property
    def saved_modules(self) -> list[str]:
        """Modules that are replaced whole: those with a replaced weight."""
        return [tensor.module for tensor in self.whole if tensor.name.endswith(".weight")]


def check_combination(
    scaled: Sequence[tuple[Adapter, float]], *, compared_bytes: int = ANY_SIZE
) -> Combination:
    """Returns the modules and tensors of the combined adapter.

    Args:
        compared_bytes: Tensors up to this size that two adapters replace are read and compared; larger ones pass, and are compared
            when the job starts.

    Raises:
        InvalidRequest: An adapter is named twice.
        UnsupportedAdapter: One is not plain LoRA, or two of them replace the same tensor by different ones.
        AdapterMismatch: They change a module in different shapes: they belong to different bases.
        VocabularyMismatch: Their tokenizers do not continue each other, or rows per token differ.
    """
    adapters = [adapter for adapter, _ in scaled]
    names = ", ".join(adapter.name for adapter in adapters)
    if len({adapter.weights.resolve() for adapter in adapters}) != len(adapters):
        raise InvalidRequest(
            f"An adapter is named twice in {names}.", "Name each adapter once; use its scale instead."
        )
    for adapter in adapters:
        _check_plain(adapter)
    modules = tuple(_modules(scaled))
    whole = tuple(_whole(adapters, modules, compared_bytes))
    _check_rows(modules, whole)
    bases = [str(name) for a in adapters if (name := a.config.get("base_model_name_or_path"))]
    return Combination(
        modules, whole, sum(_rank(adapter) for adapter in adapters), _tokenizer_folder(adapters),
        bases[0] if bases else None, any(a.config.get("ensure_weight_tying") for a in adapters),
        any(a.config.get("fan_in_fan_out") for a in adapters),
        (*_base_warnings(bases), *_scale_warnings(scaled)),
    )  # fmt: skip


def _rank(adapter: Adapter) -> int:
    return max((pair.rank for pair in adapter.pairs.values()), default=0)


def _check_plain(adapter: Adapter) -> None:
    kind = "DoRA" if adapter.config.get("use_dora") else str(adapter.config.get("peft_type"))
    reasons = {
        f"is of type {kind}": bool(adapter.layers) or kind != "LORA",
        "trains rows of single tokens (trainable_token_indices)": bool(adapter.rows),
        "changes parameters without a layer (target_parameters)": bool(
            adapter.config.get("target_parameters")
        ),
        "holds no LoRA pair": not adapter.pairs,
    }
    for reason, applies in reasons.items():
        if applies:
            raise UnsupportedAdapter(
                f"Adapter {adapter.name} {reason}; combined are plain LoRA pairs.",
                "Merge it into the base first, and the others after it.",
            )


def _modules(scaled: Sequence[tuple[Adapter, float]]) -> Iterator[CombinedModule]:
    found: dict[str, list[Part]] = {}
    for position, (adapter, scale) in enumerate(scaled):
        for pair in adapter.pairs.values():
            parts = found.setdefault(pair.module, [])
            parts.append(Part(position, scale, pair))
            first = parts[0].pair
            if (first.shape, first.transposed) != (pair.shape, pair.transposed):
                raise AdapterMismatch(
                    f"{pair.module!r} is changed in shape {list(first.shape)} by {scaled[parts[0].position][0].name} and in "
                    f"{list(pair.shape)} by {adapter.name}.",
                    "They were trained on different bases: combine adapters of one base.",
                )
    for name, module_parts in found.items():
        yield CombinedModule(name, tuple(module_parts))


def _whole(
    adapters: Sequence[Adapter], modules: Sequence[CombinedModule], compared_bytes: int
) -> Iterator[WholeTensor]:
    changed = {f"{module.name}.weight" for module in modules}
    owners: dict[str, Adapter] = {}
    for adapter in adapters:
        for name, header in adapter.replaced.items():
            if name in owners and not _same_bytes(owners[name].replaced[name], header, compared_bytes):
                raise UnsupportedAdapter(
                    f"Adapters {owners[name].name} and {adapter.name} both replace {name!r} whole, by different tensors.",
                    "Combine only one of them; merge the other one before or after it.",
                )
            if name in changed:
                raise UnsupportedAdapter(
                    f"Adapter {adapter.name} replaces {name!r} whole, and another one adds a LoRA pair to it: the result would "
                    "depend on their order.",
                    "Merge them one after another.",
                )
            if name not in owners:
                owners[name] = adapter
                yield WholeTensor(name, header)


def _same_bytes(one: TensorHeader, other: TensorHeader, limit: int) -> bool:
    if (one.dtype, one.shape) != (other.dtype, other.shape) or one.strides or other.strides:
        return False
    if one.size_bytes > limit:
        return True
    with one.path.open("rb") as first, other.path.open("rb") as second:
        first.seek(one.offset)
        second.seek(other.offset)
        rest = one.size_bytes
        while rest > 0:
            size = min(rest, 1 << 22)
            if first.read(size) != second.read(size):
                return False
            rest -= size
    return True


def _check_rows(modules: Sequence[CombinedModule], whole: Sequence[WholeTensor]) -> None:
    rows = {tensor.module: tensor.header.shape[0] for tensor in whole if tensor.name.endswith(".weight")}
    rows |= {module.name: module.parts[0].pair.shape[0] for module in modules}
    found = {name: count for name, count in rows.items() if name.rpartition(".")[2] in TOKEN_MODULES}
    if len(set(found.values())) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in found.items())
        raise VocabularyMismatch(
            f"The adapters have different numbers of rows per token: {listed}.",
            "They belong to different vocabularies: merge them one after another.",
        )


def _tokenizer_folder(adapters: Sequence[Adapter]) -> Path | None:
    """Returns the folder of the longest tokenizer, which must continue all others."""
    having = [adapter for adapter in adapters if adapter.vocabulary is not None]
    having.sort(key=lambda adapter: adapter.vocabulary.size if adapter.vocabulary else 0)
    for shorter, longer in pairwise(having):
        assert shorter.vocabulary is not None
        assert longer.vocabulary is not None
        if not longer.vocabulary.continues(shorter.vocabulary):
            raise VocabularyMismatch(
                f"The tokenizers of {shorter.name} ({shorter.vocabulary.size} tokens) and {longer.name} "
                f"({longer.vocabulary.size}) differ from token {longer.vocabulary.first_difference(shorter.vocabulary)} on.",
                "They were trained with different tokenizers: combine adapters of one vocabulary.",
            )
    return having[-1].folder if having else None


def _base_warnings(bases: Sequence[str]) -> Iterator[str]:
    if len(set(bases)) > 1:
        yield (
            f"the adapters record different bases: {', '.join(dict.fromkeys(bases))}; their shapes fit each other"
        )


def _scale_warnings(scaled: Sequence[tuple[Adapter, float]]) -> Iterator[str]:
    for adapter, scale in scaled:
        if scale != 1 and adapter.replaced:
            yield (
                f"scale {scale} applies to the LoRA pairs of {adapter.name}; {', '.join(sorted(adapter.replaced))} are "
                "replaced whole"
            )
