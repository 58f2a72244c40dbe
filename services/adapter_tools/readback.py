"""Check of a written adapter: the file is read again, and its products are compared with the changes that they stand for."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from services.adapter_tools.blocks import Deviation, Matrix, deviation_of
from services.adapter_tools.factorization import Spectrum
from services.adapter_tools.folder import AdapterSpec, PairPlan
from services.adapters.adapter import Adapter, read_adapter
from services.checkpoints.tensor_reader import TensorReader
from services.checkpoints.write_hooks import WriteHooks
from services.errors import VerificationFailed
from services.kinds.adapter_tools import TensorError
from services.progress import Progress

FLOAT32_ERROR = 1e-5
"""Error that factors in float32 may add to the one that follows from the singular values."""

SLACK = 1.01
"""Factor on the error that follows from the singular values."""


LARGE_ERROR = 0.1
"""Relative error from which a tensor is named in a warning, unless rounding explains it."""


def read_back(folder: Path, name: str, spec: AdapterSpec) -> Adapter:
    """Returns the written adapter.

    Raises:
        VerificationFailed: It does not hold exactly the planned tensors.
    """
    adapter = read_adapter(folder, name)
    found = {header.name: (header.dtype, header.shape) for header in adapter.headers}
    planned = {plan.name: (plan.dtype, plan.shape) for plan in spec.plans}
    if found != planned or any(pair.scaling != 1 for pair in adapter.pairs.values()):
        different = sorted(found.items() ^ planned.items())
        raise VerificationFailed(
            f"The adapter that was written does not hold the planned tensors: {different[:1]}.",
            "This is a bug: please report it with the log of this job.",
        )
    return adapter


def check_products(
    adapter: Adapter,
    spec: AdapterSpec,
    expected: Callable[[PairPlan], Matrix],
    spectra: Mapping[str, Spectrum],
    hooks: WriteHooks,
) -> dict[str, Deviation]:
    """Returns the measured deviation of each stored product by its module.

    Raises:
        VerificationFailed: One is larger than the rank explains.
    """
    pairs = {pair.module: pair for pair in adapter.pairs.values()}
    deviations: dict[str, Deviation] = {}
    total, done = sum(pair.elements for pair in spec.pairs), 0
    with TensorReader() as reader:
        for plan in spec.pairs:
            hooks.check_canceled()
            hooks.report(Progress("verifying products", done, total, "parameters"))
            stored = pairs[plan.module]
            deviation = deviation_of(expected(plan), reader.view(stored.a), reader.view(stored.b))
            _check(plan.module, deviation, spectra[plan.module], spec.rank)
            deviations[plan.module] = deviation
            done += plan.elements
    return deviations


def _check(module: str, deviation: Deviation, spectrum: Spectrum, rank: int) -> None:
    explained = spectrum.error(rank)
    rounding = FLOAT32_ERROR * max(deviation.norm, spectrum.size)
    if not deviation.deviation <= explained * SLACK * deviation.norm + rounding:
        raise VerificationFailed(
            f"The stored product of {module} deviates from its change by {deviation.error:.3g} of its norm; the rank explains "
            f"{explained:.3g}.",
            "Nothing was published. This is a bug: please report it with the log of this job.",
        )


def check_whole(adapter: Adapter, expected: Mapping[str, torch.Tensor], hooks: WriteHooks) -> None:
    """Compares the tensors that are held whole, by their keys.

    Raises:
        VerificationFailed: One differs.
    """
    headers = {header.name: header for header in adapter.headers}
    with TensorReader() as reader:
        for key, tensor in expected.items():
            hooks.check_canceled()
            if not torch.equal(reader.view(headers[key]), tensor):
                raise VerificationFailed(
                    f"The stored tensor {key!r} is not the one that was read.",
                    "Nothing was published. This is a bug: please report it with the log of this job.",
                )
            reader.release_header(headers[key])


def rank_warnings(errors: Sequence[TensorError], spectra: Mapping[str, Spectrum], rank: int) -> list[str]:
    """Returns a warning if the rank is too small for some tensors, with the rank that they need."""
    large = [item for item in errors if item.error > max(LARGE_ERROR, 1.5 * (item.rounding or 0.0))]
    if not large:
        return []
    worst = max(large, key=lambda item: item.error)
    needed = max(
        spectra[item.tensor.removesuffix(".weight")].rank_for(max(LARGE_ERROR, item.rounding or 0.0))
        for item in large
    )
    return [
        f"rank {rank} leaves an error above {LARGE_ERROR} in {len(large)} of {len(spectra)} weights, the largest is "
        f"{worst.error:.3f} in {worst.tensor}; an error of {LARGE_ERROR} in each would take a rank of at least {needed}"
    ]
