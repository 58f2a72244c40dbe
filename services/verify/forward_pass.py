"""Forward pass of a whole model, layer by layer, with weights that are read, cast in blocks of rows, and dropped.

Both models compute in float32. A model of any size fits: the memory holds a few tokens' hidden states and one block.
"""

import threading
from collections.abc import Sequence

import torch
from torch import nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm, LlamaRotaryEmbedding

from services.architectures.config import ModelConfig, config_to_json
from services.checkpoints.streaming import in_threads
from services.checkpoints.write_hooks import WriteHooks
from services.progress import Progress
from services.verify.weights import ModelWeights


def llama_config(config: ModelConfig, rows: int) -> LlamaConfig:
    """Returns transformers' configuration of a model whose embeddings have `rows` rows."""
    values = {**config_to_json(config, "float32"), "vocab_size": rows}
    found = LlamaConfig(
        **{key: value for key, value in values.items() if key not in ("architectures", "dtype")}
    )
    found._attn_implementation = "sdpa"
    return found


def forward_logits(
    models: Sequence[ModelWeights], config: LlamaConfig, ids: torch.Tensor, hooks: WriteHooks
) -> list[torch.Tensor]:
    """Returns the logits of each model: float32 of shape (texts, tokens, vocabulary). Each model has a thread.

    Args:
        ids: Token ids, int64 of shape (texts, tokens).

    Raises:
        JobCanceled: The caller has canceled the work.
    """
    layers = config.num_hidden_layers
    done = [0] * len(models)
    stop = threading.Event()

    def run(number: int) -> torch.Tensor | None:
        tokens = _ForwardPass(models[number], config, ids)
        for layer in range(layers):
            if stop.is_set():
                return None
            tokens.through_layer(layer)
            done[number] = layer + 1
        return tokens.logits()

    def check() -> None:
        hooks.report(Progress("comparing logits", sum(done), len(models) * layers, "layers"))
        try:
            hooks.check_canceled()
        except BaseException:
            stop.set()  # threads cannot be ended from outside, and are waited for
            raise

    check()
    return [logits for logits in in_threads(run, range(len(models)), check) if logits is not None]


class _ForwardPass:
    """Forward pass of a few tokens of a few texts through one model, layer by layer."""

    def __init__(self, weights: ModelWeights, config: LlamaConfig, ids: torch.Tensor) -> None:
        self._weights = weights
        self._config = config
        self._positions = torch.arange(ids.shape[1])[None]
        self._hidden = weights.embedding(ids.flatten()).view(*ids.shape, -1)
        self._rotary = LlamaRotaryEmbedding(config)(self._hidden, self._positions)

    @torch.no_grad()
    def through_layer(self, number: int) -> None:
        """Computes one layer and releases the pages of its weights."""
        layer = _layer(self._weights, self._config, number)
        self._hidden = layer(
            self._hidden, attention_mask=None, position_ids=self._positions, position_embeddings=self._rotary
        )
        self._weights.release()

    @torch.no_grad()
    def logits(self) -> torch.Tensor:
        """Returns the logits after the last layer."""
        norm = _norm(self._weights, "model.norm.weight", self._config)
        head = "model.embed_tokens" if self._config.tie_word_embeddings else "lm_head"
        result: torch.Tensor = self._weights.projection(head)(norm(self._hidden))
        self._weights.release()
        return result


def _layer(weights: ModelWeights, config: LlamaConfig, number: int) -> nn.Module:
    """Returns transformers' own layer with the modules of this model."""
    with torch.device("meta"):
        layer = LlamaDecoderLayer(config, number).eval()
    prefix = f"model.layers.{number}."
    for path, module in list(layer.named_modules()):
        parent, _, leaf = path.rpartition(".")
        if isinstance(module, nn.Linear):
            setattr(layer.get_submodule(parent), leaf, weights.projection(prefix + path))
        elif isinstance(module, LlamaRMSNorm):
            setattr(layer.get_submodule(parent), leaf, _norm(weights, f"{prefix}{path}.weight", config))
    return layer


def _norm(weights: ModelWeights, name: str, config: LlamaConfig) -> nn.Module:
    norm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)
    weight = weights.vector(name)
    assert weight is not None, f"{name} is in the key map"
    norm.weight = nn.Parameter(weight, requires_grad=False)
    return norm
