"""Importance matrix of a model, computed from a text: the mean square of each column of the inputs of every matrix in its layers.

The model computes in float32, layer by layer and within each layer chunk by chunk; the figures are those of llama-imatrix
(ggml-org/llama.cpp `tools/imatrix/imatrix.cpp`) with its default chunks, as far as its arithmetic allows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from services.architectures.checkpoint import Checkpoint
from services.architectures.config import ModelConfig
from services.architectures.gguf_imatrix import MOST_CHUNKS, chunk_size
from services.architectures.output_spec import OutputSpec
from services.checkpoints.gguf_encoding import Importance
from services.checkpoints.gguf_plans import gguf_plans
from services.checkpoints.importance import ImportanceMatrix, check_importance
from services.checkpoints.tensor_reader import TensorReader
from services.checkpoints.write_hooks import WriteHooks
from services.errors import InvalidRequest
from services.kinds.made_model import ImatrixSummary
from services.merge import ScaledAdapter
from services.progress import Progress
from services.tokenizers import load_tokenizer
from services.verify.forward_pass import ForwardPass, text_model
from services.verify.rounded import RoundedMerge
from services.verify.weights import ExpectedWeights, ModelWeights


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationText:
    """A text by which a model is calibrated.

    `name` is its path on the volume, `identity` distinguishes its content from that of others, by its `repr`.
    """

    name: str
    content: str
    identity: tuple[str, ...]
    tokenizer_folder: Path


class _Sums:
    """Sums of squares of the inputs, float64 by Hugging Face's name of the matrix."""

    def __init__(self) -> None:
        self.squares: dict[str, torch.Tensor] = {}

    def add(self, name: str, inputs: torch.Tensor) -> None:
        squares = inputs.flatten(0, -2).square().sum(0, dtype=torch.float64)
        self.squares[name] = self.squares[name] + squares if name in self.squares else squares


class _ObservedProjection(nn.Module):
    """Projection whose inputs are summed."""

    def __init__(self, inner: nn.Module, name: str, sums: _Sums, hooks: WriteHooks) -> None:
        super().__init__()
        self._inner, self._name, self._sums, self._hooks = inner, name, sums, hooks

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the projection of x (…, in), which is (…, out)."""
        self._hooks.check_canceled()
        self._sums.add(self._name, x)
        out: torch.Tensor = self._inner(x)
        return out


class _ObservedWeights:
    """Weights of a model whose projections sum their inputs."""

    def __init__(self, weights: ModelWeights, sums: _Sums, hooks: WriteHooks) -> None:
        self._weights, self._sums, self._hooks = weights, sums, hooks
        self.rows, self.vector, self.release = weights.rows, weights.vector, weights.release

    def projection(self, weight: str, bias: str | None) -> nn.Module:
        """Returns the linear module of a weight and a bias."""
        return _ObservedProjection(self._weights.projection(weight, bias), weight, self._sums, self._hooks)


def compute_importance(
    base: Checkpoint,
    adapters: Sequence[ScaledAdapter],
    output: OutputSpec,
    text: CalibrationText,
    hooks: WriteHooks,
) -> ImportanceMatrix:
    """Returns the importance matrix of a merged model before its weights are rounded.

    Args:
        output: The GGUF output; the matrices of its layers get a row.

    Raises:
        InvalidRequest: The text is shorter than one chunk.
        UnsupportedOption: Inputs are zero or not finite.
        JobCanceled: The caller has canceled the work.
    """
    rows = output.tensors[base.embeddings][1][0]
    ids = _chunks(text, output.config, rows)
    sums = _Sums()
    with TensorReader() as reader:
        merged = RoundedMerge(base=base, adapters=adapters, once=True, dtypes={})
        weights = _ObservedWeights(ExpectedWeights(reader, merged), sums, hooks)
        layers = _LayerProgress(output.config.num_hidden_layers, hooks)
        ForwardPass(
            weights, text_model(output.config, output.tensors, rows), ids, layers.advance
        ).pass_layers()
    plans = gguf_plans(output)
    found = {plans[name].name: _mean(squares, ids.numel()) for name, squares in sums.squares.items()}
    for matrix, row in found.items():
        check_importance(text.name, matrix, row)
    summary = ImatrixSummary(
        text_file=text.name, entries=len(found), chunks=len(ids), chunk_size=ids.shape[1], tokens=ids.numel()
    )
    return ImportanceMatrix(rows=found, identity=text.identity, summary=summary)


def _mean(squares: torch.Tensor, count: int) -> Importance:
    return (squares / count).float().numpy()


class _LayerProgress:
    """Progress of a forward pass, in layers."""

    def __init__(self, layers: int, hooks: WriteHooks) -> None:
        self._done, self._layers, self._hooks = 0, layers, hooks
        self._report()

    def advance(self) -> None:
        """Reports one more layer."""
        self._done += 1
        self._report()

    def _report(self) -> None:
        self._hooks.report(Progress("computing importance", self._done, self._layers, "layers"))


def _chunks(text: CalibrationText, config: ModelConfig, rows: int) -> torch.Tensor:
    """Returns the first chunks of a text, int64 of shape (chunks, tokens).

    Each begins with the beginning-of-text token if the model's texts do, in place of its first token, as in llama-imatrix.
    """
    tokenizer, size = load_tokenizer(text.tokenizer_folder), chunk_size(config)
    ids = tokenizer.encode(text.content)
    if len(ids) < size:
        raise InvalidRequest(
            f"{text.name} has {len(ids)} tokens; at least {size} are needed to compute an importance matrix.",
            "Give a longer text: the more varied, the better.",
        )
    if max(ids) >= rows:
        raise InvalidRequest(
            f"{text.name} has the token {max(ids)}; the model has {rows} rows of embeddings.",
            "The tokenizer is not the model's.",
        )
    count = min(MOST_CHUNKS, len(ids) // size)
    chunks = torch.tensor(ids[: count * size]).view(count, size)
    if tokenizer.add_bos and tokenizer.bos_id is not None:
        chunks[:, 0] = tokenizer.bos_id
    return chunks
