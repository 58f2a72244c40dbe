"""The merged model's logits against those of the base with its adapters on the fly: the whole forward pass, layer by layer.

Both sides compute in float32 from weights that are read, cast in blocks of rows, and dropped, so that a model of any size fits:
in memory lie a few tokens' hidden states and one block. On the fly a projection is `x @ W.T + s * (x @ A.T) @ B.T`: the
adapters' products are never added to a weight, nothing of the merge's arithmetic is used.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm, LlamaRotaryEmbedding

from services.adapters.stack import merged_tensors
from services.architectures.checkpoint import Checkpoint, TensorSource
from services.architectures.config import ModelConfig, config_to_json
from services.checkpoints.readback import StoredModel
from services.checkpoints.streaming import in_threads
from services.checkpoints.tensor_reader import TensorReader
from services.checkpoints.write_hooks import WriteHooks
from services.errors import GraftwerkError
from services.merge import ScaledAdapter, changes_of, release_tensor
from services.merge.delta import Change, changed_blocks
from services.merge.peft_layers import layer_model
from services.progress import Progress
from services.tokenizers import load_tokenizer
from services.verify.expected import expected_rows

TEXTS = (
    "The capital of France is Paris, and the capital of China is Beijing. What is the capital of Japan?",
    "下面是一段关于人工智能的介绍：人工智能是计算机科学的一个分支，它研究如何让机器完成需要智能的任务。",
    "def area(width, height):\n    return width * height\n\nprint(area(3, 4))  # 12, and so on",
)
"""What both sides read: English, Chinese, code."""

TOKENS = 12
"""Of each text, so that all texts are equally long and nothing is padded."""

BLOCK_ELEMENTS = 1 << 20
"""Elements that are cast to float32 at once: 4 MB, so that blocks stay in the cache."""

LEAST_TOLERANCE = 1e-4
"""What float32 arithmetic in another order may amount to."""


@dataclass(frozen=True, slots=True)
class LogitsReport:
    """How two forward passes compare; positions are all tokens of all texts."""

    positions: int
    largest_difference: float
    relative_difference: float
    tolerance: float
    greedy_agreement: float

    @property
    def passed(self) -> bool:
        """Whether the difference is one that rounding explains (NaN is none)."""
        return self.relative_difference <= self.tolerance

    def as_json(self) -> dict[str, Any]:
        """For a job's result."""
        return {
            "passed": self.passed, "positions": self.positions, "largest_difference": self.largest_difference,
            "relative_difference": self.relative_difference, "tolerance": self.tolerance,
            "greedy_agreement": self.greedy_agreement,
        }  # fmt: skip


class Side(Protocol):
    """One of the two models."""

    def embedding(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows of the embedding, float32."""

    def vector(self, name: str) -> torch.Tensor | None:
        """A norm or a bias in float32, None where there is none."""

    def projection(self, module: str) -> nn.Module:
        """A linear module by its path."""

    def release(self) -> None:
        """Let go the pages of what was read since the last time."""


class Projection(nn.Module):
    """A linear map of float32 tensors (…, in) to (…, out), with adapters' products beside it."""

    def __init__(
        self,
        product: Callable[[torch.Tensor], torch.Tensor],
        factors: Sequence[tuple[torch.Tensor, torch.Tensor, float]] = (),
        bias: torch.Tensor | None = None,
    ) -> None:
        """`factors` are A (r, in), B (out, r) and the scale, in any dtype."""
        super().__init__()
        self._product = product
        self._factors = factors
        self._bias = bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The product, what the factors add, and the bias."""
        out = self._product(x)
        for a, b, scale in self._factors:
            out = out + (x @ a.float().T) @ b.float().T * scale
        return out if self._bias is None else out + self._bias


def product_of(
    rows: int, blocks: Callable[[], Iterable[torch.Tensor]]
) -> Callable[[torch.Tensor], torch.Tensor]:
    """`x @ W.T` of a weight of so many rows that comes as blocks of rows, each cast to float32 on its own."""

    def product(x: torch.Tensor) -> torch.Tensor:
        # filled in place: results kept beside the blocks would leave holes that no later block fits into
        out, start = x.new_empty(*x.shape[:-1], rows), 0
        for block in blocks():
            out[..., start : start + len(block)] = x @ block.float().T
            start += len(block)
        return out

    return product


def weight_product(weight: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """`product_of` a weight that is there."""
    return product_of(len(weight), lambda: (weight[rows] for rows in row_blocks(weight.shape)))


def row_blocks(shape: Sequence[int]) -> list[slice]:
    """The rows of a matrix in blocks of about BLOCK_ELEMENTS."""
    step = max(1, BLOCK_ELEMENTS // shape[1])
    return [slice(start, min(start + step, shape[0])) for start in range(0, shape[0], step)]


def compare_logits(
    reader: TensorReader,
    stored: StoredModel,
    base: Checkpoint,
    adapters: Sequence[ScaledAdapter],
    *,
    rounding: float,
    tokenizer_folder: Path,
    hooks: WriteHooks,
) -> LogitsReport:
    """The logits of a stored model and of the base with the adapters, for a few tokens of a few texts.

    Args:
        rounding: how far rounding may have taken the model's weights, all matrices together: the root of the sum of squares of each
            one's bound relative to its size. Errors that are independent of each other add up so along the way to the
            logits, which then may be as far apart, relative to their size (root mean square); found were 10 to 60 times less. A
            missing or doubled adapter is off by orders of magnitude.
    """
    embedding = stored.tensors["model.embed_tokens.weight"]
    rows = embedding.shape[0]
    ids = _token_ids(tokenizer_folder, rows)
    config = llama_config(base.config, rows)
    sides: list[Side] = [MergedSide(reader, stored), OnTheFlySide(reader, base, adapters)]
    found, expected = side_logits(sides, config, ids, hooks)
    difference = (found - expected).double()
    size = float(expected.double().square().mean().sqrt())
    apart = float(difference.square().mean().sqrt())
    return LogitsReport(
        positions=ids.numel(), largest_difference=float(difference.abs().max()),
        relative_difference=apart / size if size else apart,
        tolerance=max(LEAST_TOLERANCE, rounding),
        greedy_agreement=float((found.argmax(-1) == expected.argmax(-1)).double().mean()),
    )  # fmt: skip


def llama_config(config: ModelConfig, rows: int) -> LlamaConfig:
    values = {**config_to_json(config, "float32"), "vocab_size": rows}
    found = LlamaConfig(
        **{key: value for key, value in values.items() if key not in ("architectures", "dtype")}
    )
    found._attn_implementation = "sdpa"
    return found


def _token_ids(folder: Path, rows: int) -> torch.Tensor:
    """Token ids (texts, tokens): of texts where a tokenizer is there and they are long enough, else spread over the vocabulary."""
    spread = torch.linspace(3, rows - 1, len(TEXTS) * TOKENS).long().view(len(TEXTS), TOKENS)
    try:
        tokenizer = load_tokenizer(folder)
    except GraftwerkError:  # a model without a tokenizer: its plan has a warning
        return spread
    encoded = [tokenizer.encode(text)[:TOKENS] for text in TEXTS]
    fits = all(len(ids) == TOKENS and max(ids) < rows for ids in encoded)
    return torch.tensor(encoded) if fits else spread


def side_logits(
    sides: Sequence[Side], config: LlamaConfig, ids: torch.Tensor, hooks: WriteHooks
) -> list[torch.Tensor]:
    """Float32 logits (texts, tokens, vocabulary) of each side, side by side in a thread each."""
    layers = config.num_hidden_layers
    done = [0] * len(sides)
    stop = threading.Event()

    def run(number: int) -> torch.Tensor | None:
        tokens = _Pass(sides[number], config, ids)
        for layer in range(layers):
            if stop.is_set():
                return None
            tokens.through_layer(layer)
            done[number] = layer + 1
        return tokens.logits()

    def look() -> None:
        hooks.report(Progress("comparing logits", sum(done), len(sides) * layers, "layers"))
        try:
            hooks.check_canceled()
        except BaseException:
            stop.set()  # a thread cannot be ended from outside, and is waited for
            raise

    look()
    return [logits for logits in in_threads(run, range(len(sides)), look) if logits is not None]


class _Pass:
    """A few tokens of a few texts on their way through one side."""

    def __init__(self, side: Side, config: LlamaConfig, ids: torch.Tensor) -> None:
        self._side = side
        self._config = config
        self._positions = torch.arange(ids.shape[1])[None]
        self._hidden = side.embedding(ids.flatten()).view(*ids.shape, -1)
        self._rotary = LlamaRotaryEmbedding(config)(self._hidden, self._positions)

    @torch.no_grad()
    def through_layer(self, number: int) -> None:
        """Compute one layer, and let go the pages of its weights."""
        layer = _layer(self._side, self._config, number)
        self._hidden = layer(
            self._hidden, attention_mask=None, position_ids=self._positions, position_embeddings=self._rotary
        )
        self._side.release()

    @torch.no_grad()
    def logits(self) -> torch.Tensor:
        """What comes out after the last layer."""
        norm = _norm(self._side, "model.norm.weight", self._config)
        head = "model.embed_tokens" if self._config.tie_word_embeddings else "lm_head"
        result: torch.Tensor = self._side.projection(head)(norm(self._hidden))
        self._side.release()
        return result


def _layer(side: Side, config: LlamaConfig, number: int) -> nn.Module:
    """transformers' own layer, its modules replaced by this side's."""
    with torch.device("meta"):
        layer = LlamaDecoderLayer(config, number).eval()
    prefix = f"model.layers.{number}."
    for path, module in list(layer.named_modules()):
        parent, _, leaf = path.rpartition(".")
        if isinstance(module, nn.Linear):
            setattr(layer.get_submodule(parent), leaf, side.projection(prefix + path))
        elif isinstance(module, LlamaRMSNorm):
            setattr(layer.get_submodule(parent), leaf, _norm(side, f"{prefix}{path}.weight", config))
    return layer


def _norm(side: Side, name: str, config: LlamaConfig) -> nn.Module:
    norm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)
    weight = side.vector(name)
    assert weight is not None, f"{name} stands in the key map"
    norm.weight = nn.Parameter(weight, requires_grad=False)
    return norm


class MergedSide:
    """A model as it lies on the disk."""

    def __init__(self, reader: TensorReader, stored: StoredModel) -> None:
        self._reader = reader
        self._tensors = stored.tensors
        self._read: list[TensorSource] = []

    def release(self) -> None:
        """Let go the pages of what was read since the last time."""
        while self._read:
            self._reader.release(self._read.pop())

    def embedding(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows of the embedding, float32."""
        return self._tensors["model.embed_tokens.weight"].rows(self._reader, ids)[0].float()

    def vector(self, name: str) -> torch.Tensor | None:
        """A norm or a bias in float32."""
        found = self._tensors.get(name)
        return None if found is None else found.rows(self._reader, torch.arange(found.shape[0]))[0].float()

    def projection(self, module: str) -> nn.Module:
        """A linear module by its path."""
        stored = self._tensors[f"{module}.weight"]
        bias = self.vector(f"{module}.bias")
        self._read.append(stored.source)
        if not stored.by_blocks:
            return Projection(weight_product(self._reader.joined(stored.source)), bias=bias)

        numbers = torch.arange(stored.shape[0])
        blocks = [numbers[rows] for rows in row_blocks(stored.shape)]

        def decoded() -> Iterator[torch.Tensor]:
            return (stored.rows(self._reader, rows)[0] for rows in blocks)

        return Projection(product_of(stored.shape[0], decoded), bias=bias)


class OnTheFlySide:
    """The base with adapters beside its weights."""

    def __init__(self, reader: TensorReader, base: Checkpoint, adapters: Sequence[ScaledAdapter]) -> None:
        self._reader = reader
        self._base = base
        self._adapters = adapters
        self._read: list[str] = []

    def release(self) -> None:
        """Let go the pages of what was read since the last time."""
        while self._read:
            name = self._read.pop()
            changes = changes_of(self._adapters, name)
            release_tensor(self._reader, self._base.tensors[name], changes)

    def embedding(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows of the embedding, float32."""
        return self._expected("model.embed_tokens.weight", ids)

    def vector(self, name: str) -> torch.Tensor | None:
        """A norm or a bias in float32: as the last adapter has it that replaces it."""
        source = self._base.tensors.get(name)
        return None if source is None else self._expected(name, torch.arange(source.shape[0]))

    def projection(self, module: str) -> nn.Module:
        """A linear module by its path."""
        name = f"{module}.weight"
        self._read.append(name)
        changes = changes_of(self._adapters, name)
        if any(change.rows is not None for change in changes):
            return Projection(self._expected_product(name), bias=self.vector(f"{module}.bias"))
        last = max((i for i, change in enumerate(changes) if change.layer is not None), default=None)
        if last is not None:
            return self._around_layer(name, changes, last)
        start = max((i for i, change in enumerate(changes) if change.replaced is not None), default=0)
        replaced = changes[start].replaced if changes else None
        weight = (
            self._reader.joined(self._base.tensors[name]) if replaced is None else self._reader.view(replaced)
        )
        return Projection(
            weight_product(weight), self._factors(changes[start:]), self.vector(f"{module}.bias")
        )

    def _factors(self, changes: Sequence[Change]) -> list[tuple[torch.Tensor, torch.Tensor, float]]:
        found = []
        for change in changes:
            if change.pair is not None:
                a, b = self._reader.view(change.pair.a), self._reader.view(change.pair.b)
                halves = (b.T, a.T) if change.pair.transposed else (a, b)
                found.append((*halves, change.pair.scaling * change.scale))
        return found

    def _around_layer(self, name: str, changes: Sequence[Change], last: int) -> nn.Module:
        """PEFT's own layer around the weight as it was before the last tuner of that kind, later adapters beside it."""
        weight = self._reader.load(self._base.tensors[name])
        if last:
            weight = torch.cat(list(changed_blocks(self._reader, weight, changes[:last], once=True)))
        layer = changes[last].layer
        assert layer is not None
        model = layer_model(self._reader, changes[last].adapter, layer, weight.float())
        inner = model.get_submodule(f"base_model.model.{layer.module}")
        return Projection(inner, self._factors(changes[last + 1 :]), self.vector(f"{layer.module}.bias"))

    def _expected(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        return expected_rows(self._reader, self._base, self._adapters, name, rows)[0].float()

    def _expected_product(self, name: str) -> Callable[[torch.Tensor], torch.Tensor]:
        shape = merged_tensors(self._base, [item.adapter for item in self._adapters])[name][1]
        numbers = torch.arange(shape[0])
        blocks = [numbers[rows] for rows in row_blocks(shape)]
        return product_of(shape[0], lambda: (self._expected(name, rows) for rows in blocks))
