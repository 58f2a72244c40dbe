"""Loss of a GGUF output against its source: both predict the next token of a text, and their probabilities are compared.

Both compute in float32, layer by layer; blocks are decoded as they are read. The figures are those of llama-perplexity's
`--kl-divergence` (ggml-org/llama.cpp `tools/perplexity`).
"""

from pathlib import Path

import torch

from services.architectures.checkpoint import Checkpoint
from services.architectures.output_spec import OutputSpec
from services.checkpoints.readback import read_stored
from services.checkpoints.tensor_reader import TensorReader
from services.checkpoints.write_hooks import WriteHooks
from services.errors import InvalidRequest
from services.kinds.convert import Measurement
from services.tokenizers import load_tokenizer
from services.verify.forward_pass import forward_logits, text_model
from services.verify.rounded import RoundedMerge
from services.verify.weights import ExpectedWeights, ModelWeights, StoredWeights

WINDOW = 64
"""Tokens of a window, each of which is predicted from those before it in the window."""

MOST_LOGITS = 1 << 25
"""Most logits of one model: 128 MB in float32, 1,024 tokens of 32,000, 256 of 128,000."""

MOST_WINDOWS = 16


def measure(
    source: Checkpoint, output: OutputSpec, folder: Path, text: str, hooks: WriteHooks
) -> Measurement:
    """Returns the loss of the output in `folder`, made of a source, on the beginning of a text.

    Raises:
        InvalidRequest: The text is shorter than one window.
        JobCanceled: The caller has canceled the work.
    """
    stored = read_stored(folder, output)
    rows = output.tensors[source.embeddings][1][0]
    ids = _windows(load_tokenizer(source.tokenizer_folder).encode(text), rows)
    with TensorReader() as reader:
        models: list[ModelWeights] = [
            ExpectedWeights(reader, RoundedMerge(base=source, dtypes={})),
            StoredWeights(reader, stored),
        ]
        expected, found = forward_logits(models, text_model(output.config, output.tensors, rows), ids, hooks)
    divergence = torch.stack([_divergence(a, b) for a, b in zip(expected, found, strict=True)])
    same = expected.argmax(-1) == found.argmax(-1)
    return Measurement(
        kl_divergence=float(divergence.mean()), same_top_token=float(same.double().mean()), tokens=ids.numel()
    )


def _windows(ids: list[int], rows: int) -> torch.Tensor:
    """Returns the first windows of a text: int64 of shape (windows, tokens)."""
    if len(ids) < WINDOW:
        raise InvalidRequest(
            f"The text to measure with has {len(ids)} tokens; at least {WINDOW} are needed.",
            "Give a longer text.",
        )
    count = max(1, min(MOST_WINDOWS, len(ids) // WINDOW, MOST_LOGITS // (WINDOW * rows)))
    return torch.tensor(ids[: count * WINDOW]).view(count, WINDOW)


def _divergence(expected: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    """Returns KL(expected || found) of each token in nats, float64 of shape (tokens,)."""
    there, here = (logits.double().log_softmax(-1) for logits in (expected, found))
    return (there.exp() * (there - here)).sum(-1)
