"""Combination of several adapters into one: module by module, by one of the methods of `services/adapter_tools/methods.py`."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from services.adapter_tools.blocks import Matrix, overall
from services.adapter_tools.factorization import Factors, factorize, factorize_product
from services.adapter_tools.folder import AdapterSpec, PairPlan, WrittenAdapter, write_adapter
from services.adapter_tools.methods import SPARSE_METHODS, Change, Method, Sparsity, sum_of
from services.adapter_tools.readback import check_products, check_whole, rank_warnings, read_back
from services.adapters.adapter import read_adapter
from services.adapters.combination import Combination, CombinedModule, WholeTensor, check_combination
from services.adapters.tuners import PREFIX
from services.checkpoints.tensor_reader import TensorReader, check_finite
from services.checkpoints.write_hooks import WriteHooks
from services.checkpoints.write_ledger import TensorPlan
from services.kinds.adapter_tools import TensorError


@dataclass(frozen=True, slots=True)
class CombineOptions:
    """Options of a combination; their `repr` identifies the work in manifests.

    Attributes:
        density: Share of the elements that `ties` and `dare` keep.
        seed: Seed from which `dare` draws them.
        rank: Rank of the new adapter; None is the sum of the ranks.
    """

    method: Method
    density: float = 0.5
    seed: int = 0
    rank: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Combined:
    """Output of a combination and its errors."""

    combination: Combination
    written: WrittenAdapter
    rank: int
    errors: Sequence[TensorError]
    error: float
    warnings: Sequence[str]


def combine(
    adapters: Sequence[tuple[str, Path, float]],
    target: Path,
    options: CombineOptions,
    hooks: WriteHooks | None = None,
) -> Combined:
    """Writes the combination of adapters (name, folder, scale) into the empty folder `target`.

    Errors of `read_adapter` and `check_combination` are raised as they are.

    Raises:
        NonFiniteTensor: An adapter or the result holds NaN or infinity.
        VerificationFailed: The written adapter is not what it should be.
        DiskFull: The volume has no space for the adapter.
        JobCanceled: The caller has canceled the work.
    """
    hooks = hooks or WriteHooks()
    combination = check_combination([(read_adapter(folder, name), scale) for name, folder, scale in adapters])
    spec = combined_spec(combination, options.rank)
    modules = {module.name: module for module in combination.modules}
    whole = dict(zip((plan.name for plan in spec.whole), combination.whole, strict=True))
    with TensorReader() as reader:

        def compute(plan: PairPlan) -> Factors:
            return _factors(_changes(reader, modules[plan.module]), plan.module, options, spec.rank)

        def expected(plan: PairPlan) -> Matrix:
            return _matrix(_changes(reader, modules[plan.module]), plan.module, options)

        def read(key: str) -> Iterable[torch.Tensor]:
            tensor = reader.view(whole[key].header)
            check_finite(whole[key].name, tensor)
            return [tensor]

        written = write_adapter(target, spec, compute, read, hooks)
        adapter = read_back(target, target.name, spec)
        check_whole(adapter, {key: reader.view(tensor.header) for key, tensor in whole.items()}, hooks)
        deviations = check_products(adapter, spec, expected, written.spectra, hooks)
    errors = [
        TensorError(tensor=f"{module}.weight", error=found.error, norm=found.norm)
        for module, found in deviations.items()
    ]
    errors += [TensorError(tensor=tensor.name, error=0.0) for tensor in combination.whole]
    return Combined(
        combination=combination, written=written, rank=spec.rank, errors=errors,
        error=overall(list(deviations.values())),
        warnings=[*combination.warnings, *rank_warnings(errors, written.spectra, spec.rank)],
    )  # fmt: skip


def combined_spec(combination: Combination, rank: int | None) -> AdapterSpec:
    """Returns the folder of the new adapter."""
    adapted = {module.name for module in combination.modules}
    saved = set(combination.saved_modules)
    return AdapterSpec(
        rank=rank or combination.rank, base_name=combination.base_name,
        pairs=[PairPlan(module.name, module.shape, module.embedding) for module in combination.modules],
        whole=[TensorPlan(_key(tensor, adapted), tensor.header.dtype, tensor.header.shape) for tensor in combination.whole],
        saved_modules=combination.saved_modules, biases=any(t.module not in saved for t in combination.whole),
        tied=combination.tied, transposed=combination.transposed, tokenizer_folder=combination.tokenizer_folder,
    )  # fmt: skip


def _key(tensor: WholeTensor, adapted: set[str]) -> str:
    leaf = tensor.name.rpartition(".")[2]
    return f"{PREFIX}{tensor.module}{'.base_layer' if tensor.module in adapted else ''}.{leaf}"


def _changes(reader: TensorReader, module: CombinedModule) -> list[Change]:
    changes = []
    for part in module.parts:
        factors = [reader.view(header) for header in (part.pair.a, part.pair.b)]
        for header, factor in zip((part.pair.a, part.pair.b), factors, strict=True):
            check_finite(header.name, factor)
        a, b = (factor.float().contiguous() for factor in factors)
        changes.append(Change(a, b, part.pair.scaling, part.scale, part.position))
    return changes


def _matrix(changes: Sequence[Change], module: str, options: CombineOptions) -> Matrix:
    sparse = SPARSE_METHODS.get(options.method)
    return sparse(changes, Sparsity(options.density, options.seed, module)) if sparse else sum_of(changes)


def _factors(changes: Sequence[Change], module: str, options: CombineOptions, rank: int) -> Factors:
    size = sum(change.norm**2 for change in changes) ** 0.5
    if options.method in SPARSE_METHODS:
        return factorize(_matrix(changes, module, options), rank).summed(size)
    a = torch.cat([change.a * change.weight * change.scaling for change in changes])
    b = torch.cat([change.b for change in changes], dim=1)
    if options.method == "concatenate" and len(a) <= rank:
        return _stacked(a, b, rank).summed(size)
    exact = torch.cat([change.a.double() * (change.weight * change.scaling) for change in changes])
    return factorize_product(b, exact, rank).summed(size)


def _stacked(a: torch.Tensor, b: torch.Tensor, rank: int) -> Factors:
    """Returns stacked factors, filled up with zeros."""
    filled_a, filled_b = torch.zeros(rank, a.shape[1]), torch.zeros(b.shape[0], rank)
    filled_a[: len(a)], filled_b[:, : b.shape[1]] = a, b
    return Factors(filled_a, filled_b)
