"""Comparison of a stored model's matrices and logits with those of a right merge of its base and adapters."""

from collections.abc import Iterator
from pathlib import Path

import torch

from services.checkpoints.readback import StoredModel
from services.checkpoints.tensor_reader import TensorReader
from services.checkpoints.write_hooks import WriteHooks
from services.errors import GraftwerkError
from services.kinds.computed_checks import LogitsComparison
from services.tokenizers import load_tokenizer
from services.verify.expected import ExpectedMerge
from services.verify.forward_pass import forward_logits, text_model
from services.verify.observations import Observations
from services.verify.rounded import rounded_merge
from services.verify.scales import SIGNIFICANCE
from services.verify.weights import ExpectedWeights, NoisyWeights, StoredWeights

TEXTS = (
    "The capital of France is Paris, and the capital of China is Beijing. What is the capital of Japan?",
    "下面是一段关于人工智能的介绍：人工智能是计算机科学的一个分支，它研究如何让机器完成需要智能的任务。",
    "def area(width, height):\n    return width * height\n\nprint(area(3, 4))  # 12, and so on",
)
"""Input of both models: English, Chinese, code."""

TOKENS = 12
"""Tokens of each text, so that all texts are equally long and nothing is padded."""

TOLERATED_ERRORS = 1.0
"""Largest quotient of the difference of the logits and that of the disturbed ones.

A tolerance is a unit in the last place for each rounding, which is off by half of that at most and by 0.29 in the mean square.
"""

LEAST_TOLERANCE = 1e-4
"""Relative difference that float32 arithmetic in another order may cause."""


def compare_logits(
    reader: TensorReader,
    stored: StoredModel,
    merge: ExpectedMerge,
    observations: Observations,
    hooks: WriteHooks,
) -> Iterator[tuple[str, str]]:
    """Compares the rows of all matrices and the logits of a stored model with the expected ones, for a few tokens of a few texts.

    The expected weights have the roundings of a right merge, so that the stored ones differ from them only where two right
    merges may differ: where a sum is close to the middle of two numbers of the dtype, and by the error of a block encoding.
    What such differences do to the logits depends on the model, and is measured if the logits differ by more than
    LEAST_TOLERANCE: a third forward pass has independent random errors in the stored weights, of the size of the tolerances of
    the sampled values (`Observations.errors`), and the logits may differ by TOLERATED_ERRORS times as much as its logits do.

    A row is compared by its products with random signs. A sum of errors e_j with such signs exceeds SIGNIFICANCE * |e| once in
    10^13 (Hoeffding 1963), for errors of any sizes; |e| is at most the sum of all roundings of the row (rounded.py).

    Yields:
        The name of each matrix with such a row, and a message. Afterwards `observations.logits` is set; its positions are all
        tokens of all texts.

    Raises:
        JobCanceled: The caller has canceled the work.
    """
    rows = stored.tensors[merge.base.embeddings].shape[0]
    ids = _token_ids(merge.stack.tokenizer_folder, rows)
    here, there = (
        StoredWeights(reader, stored),
        ExpectedWeights(reader, rounded_merge(merge, observations.scales.once, stored.tensors)),
    )
    text = text_model(merge.output.config, merge.output.tensors, rows)
    found, expected = forward_logits([here, there], text, ids, hooks)
    for side in (here, there):  # no linear module uses the embeddings, unless they are tied
        side.projection(text.embeddings, None)(expected.new_empty(0, text.config.hidden_size))
        side.release()
    size = _size(expected) or 1.0
    tolerance = LEAST_TOLERANCE
    if not _size(found - expected) <= tolerance * size:
        noisy = NoisyWeights(StoredWeights(reader, stored), observations.errors)
        (disturbed,) = forward_logits([noisy], text, ids, hooks)
        tolerance = max(tolerance, TOLERATED_ERRORS * _size(disturbed - found) / size)
    observations.logits = _comparison(found, expected, tolerance)
    yield from _row_findings(here, there)


def _row_findings(found: StoredWeights, expected: ExpectedWeights) -> Iterator[tuple[str, str]]:
    """Yields each matrix that has a row that is not as expected, and a message."""
    for name, products in expected.probes.items():
        bound = SIGNIFICANCE * (expected.bounds[name] + found.bounds.get(name, 0.0))
        difference = (found.probes[name] - products).double().abs().amax(0)
        wrong = (~(difference <= bound)).nonzero().flatten().tolist()  # NaN is wrong too
        if wrong:
            share = float(difference[wrong[0]] / bound[wrong[0]])
            yield (
                name,
                f"Row {wrong[0]} of {name!r} differs from the expected one by {share:.3g} times what rounding explains; "
                f"{len(wrong)} rows of {len(bound)} differ.",
            )


def _comparison(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> LogitsComparison:
    difference = (found - expected).double()
    relative_difference = _size(difference) / (_size(expected) or 1.0)
    return LogitsComparison(
        passed=relative_difference <= tolerance,  # NaN does not pass
        positions=found[..., 0].numel(), largest_difference=float(difference.abs().max()),
        relative_difference=relative_difference, tolerance=tolerance,
        greedy_agreement=float((found.argmax(-1) == expected.argmax(-1)).double().mean()),
    )  # fmt: skip


def _size(values: torch.Tensor) -> float:
    """Returns the root mean square."""
    return float(values.double().square().mean().sqrt())


def _token_ids(folder: Path, rows: int) -> torch.Tensor:
    """Returns token ids, int64 of shape (texts, tokens): those of TEXTS, or ids spread evenly over the vocabulary.

    The latter if there is no tokenizer, or if a text is too short with it.
    """
    spread = torch.linspace(3, rows - 1, len(TEXTS) * TOKENS).long().view(len(TEXTS), TOKENS)
    try:
        tokenizer = load_tokenizer(folder)
    except GraftwerkError:  # a model without a tokenizer: its plan has a warning
        return spread
    encoded = [tokenizer.encode(text)[:TOKENS] for text in TEXTS]
    fits = all(len(ids) == TOKENS and max(ids) < rows for ids in encoded)
    return torch.tensor(encoded) if fits else spread
