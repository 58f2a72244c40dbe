"""Extraction of a LoRA adapter: fine-tuned minus base, each linear weight by the best product of the rank.

Differences are computed in float64, which is exact for weights in halves. Three passes read the models: which tensors differ,
their factors, and the comparison of what was written with the differences.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from services.adapter_tools.blocks import Deviation, Matrix, overall, relative
from services.adapter_tools.difference import changed_tensors, difference, rounding_norm
from services.adapter_tools.factorization import Factors, Spectrum, factorize
from services.adapter_tools.folder import AdapterSpec, PairPlan, WrittenAdapter, write_adapter
from services.adapter_tools.readback import check_products, check_whole, rank_warnings, read_back
from services.adapters.extraction import Extraction, TensorPair, plan_extraction
from services.adapters.stack import check_stack
from services.adapters.tuners import PREFIX
from services.architectures.checkpoint import Checkpoint
from services.architectures.checkpoint_reader import read_checkpoint
from services.checkpoints.blocks import source_blocks
from services.checkpoints.tensor_reader import TensorReader
from services.checkpoints.write_hooks import WriteHooks
from services.checkpoints.write_ledger import TensorPlan
from services.errors import InvalidRequest
from services.kinds.adapter_tools import TensorError


@dataclass(frozen=True, slots=True)
class ExtractOptions:
    """Options of an extraction; their `repr` identifies the work in manifests.

    Attributes:
        base_name: Name of the base that the adapter's configuration records.
    """

    rank: int
    base_name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Extracted:
    """Output of an extraction and its errors."""

    extraction: Extraction
    written: WrittenAdapter
    errors: Sequence[TensorError]
    error: float
    unchanged: int
    warnings: Sequence[str]


def extract(
    base: Path, model: Path, target: Path, options: ExtractOptions, hooks: WriteHooks | None = None
) -> Extracted:
    """Writes the adapter into the empty folder `target`.

    Errors of `read_checkpoint` and `plan_extraction` are raised as they are.

    Raises:
        InvalidRequest: The models are equal.
        UnsupportedFormat: A parameter differs that is not the weight or bias of a module.
        NonFiniteTensor: One of the models holds NaN or infinity.
        VerificationFailed: The written adapter is not what it should be.
        DiskFull: The volume has no space for the adapter.
        JobCanceled: The caller has canceled the work.
    """
    hooks = hooks or WriteHooks()
    checkpoint = read_checkpoint(base)
    extraction = plan_extraction(checkpoint, read_checkpoint(model), options.rank)
    with TensorReader() as reader:
        changed = changed_tensors(reader, extraction, hooks)
        if not changed:
            raise InvalidRequest(
                f"There is nothing to extract: {base.name} and {model.name} hold the same values in all "
                f"{len(extraction.tensors)} tensors.",
                "Name a model that was trained from this base.",
            )
        work = _Work(reader, extraction, changed, options, hooks)
        written = work.write(target)
        deviations = work.verify(target, checkpoint, written.spectra)
        errors = work.errors(deviations)
    return Extracted(
        extraction=extraction, written=written, errors=errors, error=overall(list(deviations.values())),
        unchanged=len(extraction.tensors) - len(changed),
        warnings=[*extraction.warnings, *rank_warnings(errors, written.spectra, options.rank)],
    )  # fmt: skip


def _spec(extraction: Extraction, changed: Sequence[TensorPair], options: ExtractOptions) -> AdapterSpec:
    pairs = [PairPlan(pair.module, pair.shape) for pair in changed if pair.low_rank]
    linear = {pair.module for pair in extraction.tensors if pair.low_rank}
    whole = [pair for pair in changed if not pair.low_rank]
    saved = [pair.module for pair in whole if pair.module not in linear]
    return AdapterSpec(
        rank=options.rank, base_name=options.base_name, pairs=pairs,
        whole=[TensorPlan(key, pair.model.dtype, pair.model.shape) for key, pair in _whole(extraction, changed).items()],
        saved_modules=list(dict.fromkeys(saved)), biases=any(pair.module in linear for pair in whole),
        tied=extraction.tied_head is not None and any(pair.embedding for pair in whole),
        transposed=any(pair.transposed for pair in changed), tokenizer_folder=extraction.tokenizer_folder,
    )  # fmt: skip


def _whole(extraction: Extraction, changed: Sequence[TensorPair]) -> dict[str, TensorPair]:
    """Returns the whole tensors by their keys in the file.

    A bias of a module with a LoRA pair is that of its base layer (`bias` of PEFT). PEFT expects a tied embedding a second time, as
    the head.
    """
    adapted = {pair.module for pair in changed if pair.low_rank}
    found: dict[str, TensorPair] = {}
    for pair in changed:
        if pair.low_rank:
            continue
        layer = ".base_layer" if pair.module in adapted else ""
        found[f"{PREFIX}{pair.module}{layer}.{pair.leaf}"] = pair
        if pair.embedding and extraction.tied_head is not None:
            found[f"{PREFIX}{extraction.tied_head}.{pair.leaf}"] = pair
    return found


class _Work:
    """Passes over the tensors that differ."""

    def __init__(
        self,
        reader: TensorReader,
        extraction: Extraction,
        changed: Sequence[TensorPair],
        options: ExtractOptions,
        hooks: WriteHooks,
    ) -> None:
        self._reader, self._spec, self._hooks = reader, _spec(extraction, changed, options), hooks
        self._changed, self._whole = changed, _whole(extraction, changed)
        self._linear = {pair.module: pair for pair in changed if pair.low_rank}

    def write(self, target: Path) -> WrittenAdapter:
        """Writes the folder."""

        def compute(plan: PairPlan) -> Factors:
            return factorize(self._difference(plan), self._spec.rank)

        return write_adapter(
            target,
            self._spec,
            compute,
            lambda key: source_blocks(self._reader, self._whole[key].model),
            self._hooks,
        )

    def verify(
        self, target: Path, base: Checkpoint, spectra: Mapping[str, Spectrum]
    ) -> Mapping[str, Deviation]:
        """Reads the folder again; returns the measured deviations by module."""
        adapter = read_back(target, target.name, self._spec)
        check_stack(base, [adapter])
        whole = ((key, self._reader.joined(pair.model)) for key, pair in self._whole.items())
        check_whole(adapter, dict(whole), self._hooks)
        return check_products(adapter, self._spec, self._difference, spectra, self._hooks)

    def _difference(self, plan: PairPlan) -> Matrix:
        return difference(self._reader, self._linear[plan.module])

    def errors(self, deviations: Mapping[str, Deviation]) -> list[TensorError]:
        """Returns the error of each tensor, in the order of the file of the base."""
        return [self._error(pair, deviations.get(pair.module)) for pair in self._changed]

    def _error(self, pair: TensorPair, deviation: Deviation | None) -> TensorError:
        if not pair.low_rank or deviation is None:
            return TensorError(tensor=pair.name, error=0.0)
        rounding = rounding_norm(self._reader, pair)
        share = min(1.0, relative(rounding, deviation.norm))
        return TensorError(tensor=pair.name, error=deviation.error, norm=deviation.norm, rounding=share)
