"""Comparison of a stored model's logits with those of its base with the adapters on the fly."""

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
from services.verify.weights import ModelWeights, StoredWeights, UnmergedWeights

TEXTS = (
    "The capital of France is Paris, and the capital of China is Beijing. What is the capital of Japan?",
    "下面是一段关于人工智能的介绍：人工智能是计算机科学的一个分支，它研究如何让机器完成需要智能的任务。",
    "def area(width, height):\n    return width * height\n\nprint(area(3, 4))  # 12, and so on",
)
"""Input of both models: English, Chinese, code."""

TOKENS = 12
"""Tokens of each text, so that all texts are equally long and nothing is padded."""

LEAST_TOLERANCE = 1e-4
"""Relative difference that float32 arithmetic in another order may cause."""


def compare_logits(
    reader: TensorReader,
    stored: StoredModel,
    merge: ExpectedMerge,
    *,
    rounding: float,
    hooks: WriteHooks,
) -> LogitsComparison:
    """Compares the logits of a stored model and of the base with the adapters on the fly, for a few tokens of a few texts.

    Args:
        rounding: Bound on what rounding may have changed in all matrices of the model together: the root of the sum of squares
            of each one's bound relative to its size. Independent errors add up in this way on the way to the logits, which
            may then differ by as much, relative to their size (root mean square); found were 10 to 60 times less. A missing
            or doubled adapter is off by orders of magnitude.

    Returns:
        The comparison; its positions are all tokens of all texts.

    Raises:
        JobCanceled: The caller has canceled the work.
    """
    rows = stored.tensors[merge.base.embeddings].shape[0]
    ids = _token_ids(merge.stack.tokenizer_folder, rows)
    models: list[ModelWeights] = [
        StoredWeights(reader, stored),
        UnmergedWeights(reader, merge.base, merge.adapters),
    ]
    found, expected = forward_logits(
        models, text_model(merge.output.config, merge.output.tensors, rows), ids, hooks
    )
    difference = (found - expected).double()
    size = float(expected.double().square().mean().sqrt())
    apart = float(difference.square().mean().sqrt())
    relative_difference = apart / size if size else apart
    tolerance = max(LEAST_TOLERANCE, rounding)
    return LogitsComparison(
        passed=relative_difference <= tolerance,  # NaN does not pass
        positions=ids.numel(), largest_difference=float(difference.abs().max()),
        relative_difference=relative_difference, tolerance=tolerance,
        greedy_agreement=float((found.argmax(-1) == expected.argmax(-1)).double().mean()),
    )  # fmt: skip


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
