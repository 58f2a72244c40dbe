"""Forward pass of a whole model by transformers' own class, with weights that are read, cast in blocks of rows, and dropped.

Both models compute in float32. A model of any size and family fits: the memory holds a few tokens' hidden states, the vectors of
the model (norms, biases) and one block.
"""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from services.architectures.config import ModelConfig, config_to_json
from services.checkpoints.streaming import in_threads
from services.checkpoints.write_hooks import WriteHooks
from services.errors import UnsupportedFormat
from services.progress import Progress
from services.verify.weights import ModelWeights


@dataclass(frozen=True, slots=True)
class TextModel:
    """Text model of transformers that both models are instances of, and the names of its tensors in checkpoints.

    `names` are those of the checkpoint by those of the class; a tied head is the embedding.
    """

    config: PreTrainedConfig
    names: Mapping[str, str]
    embeddings: str


def text_model(config: ModelConfig, tensors: Iterable[str], rows: int) -> TextModel:
    """Returns the text model of a checkpoint with these tensors, whose embeddings have `rows` rows."""
    model_class = config.model_class
    found = {model_class.text_name(name): name for name in tensors}
    names = {text: name for text, name in found.items() if text is not None}
    made = text_config(replace(config, vocab_size=rows))
    made.tie_word_embeddings = model_class.head not in names
    embeddings = names[model_class.embeddings]
    return TextModel(made, {model_class.head: embeddings, **names}, embeddings)


def text_config(config: ModelConfig) -> PreTrainedConfig:
    """Returns transformers' configuration of the text model, in float32."""
    values = config_to_json(config, "float32")
    ignored = ("architectures", "dtype", "torch_dtype", "model_type", "quantization_config")
    kept = {key: value for key, value in values.items() if key not in ignored}
    make: Any = AutoConfig.for_model
    found: PreTrainedConfig = make(config.model_type, **kept).get_text_config()
    # Only the eager attention caps its scores.
    capped = getattr(found, "attn_logit_softcapping", None) is not None
    found._attn_implementation = "eager" if capped else "sdpa"
    return found


def forward_logits(
    models: Sequence[ModelWeights], text: TextModel, ids: torch.Tensor, hooks: WriteHooks
) -> list[torch.Tensor]:
    """Returns the logits of each model: float32 of shape (texts, tokens, vocabulary). Each model has a thread.

    Args:
        ids: Token ids, int64 of shape (texts, tokens).

    Raises:
        UnsupportedFormat: The class has a parameter that the checkpoint does not have, or that cannot be read in blocks.
        JobCanceled: The caller has canceled the work.
    """
    done = [0] * len(models)
    stop = threading.Event()

    def count(number: int) -> Callable[[], None]:
        def layer_done() -> None:
            done[number] += 1
            if stop.is_set():
                raise _Stopped

        return layer_done

    # made one after another: leaving parameters empty changes PyTorch's modules for the whole process
    passes = [ForwardPass(weights, text, ids, count(number)) for number, weights in enumerate(models)]

    def run(number: int) -> torch.Tensor | None:
        try:
            return passes[number].logits()
        except _Stopped:
            return None

    def check() -> None:
        layers = text.config.num_hidden_layers
        hooks.report(Progress("comparing logits", sum(done), len(models) * layers, "layers"))
        try:
            hooks.check_canceled()
        except BaseException:
            stop.set()  # threads cannot be ended from outside, and are waited for
            raise

    check()
    return [logits for logits in in_threads(run, range(len(models)), check) if logits is not None]


class _Stopped(Exception):
    """Ends a forward pass after a layer."""


class ForwardPass:
    """Forward pass of a few tokens of a few texts through one model."""

    def __init__(
        self, weights: ModelWeights, text: TextModel, ids: torch.Tensor, layer_done: Callable[[], None]
    ) -> None:
        self._weights = weights
        self._layer_done = layer_done
        # Only the rows of these tokens are read; each token becomes the number of its row.
        tokens, self._ids = torch.unique(ids, return_inverse=True)
        self._model = _empty_model(text.config)
        embedding = self._model.get_input_embeddings()
        _fill(self._model, embedding, weights, text)
        embedding.weight = _parameter(weights.rows(text.embeddings, tokens))
        self._layers = _layers(self._model, text.config.num_hidden_layers)
        for layer in self._layers:
            layer.register_forward_hook(self._after_layer)

    @torch.no_grad()
    def logits(self) -> torch.Tensor:
        """Returns the logits after the last layer."""
        model: Any = self._model
        result: torch.Tensor = model(input_ids=self._ids, use_cache=False).logits
        self._weights.release()
        return result

    @torch.no_grad()
    def pass_layers(self) -> None:
        """Passes the tokens through all layers and computes no logits.

        Within a layer one text follows another, so that the memory holds the hidden states of all and the products of one.
        """
        for layer in self._layers:
            layer.forward = _text_by_text(layer.forward, len(self._ids))
        model: Any = self._model.base_model
        model(input_ids=self._ids, use_cache=False)
        self._weights.release()

    def _after_layer(self, *args: object) -> None:
        """Releases the pages of a layer's weights."""
        self._weights.release()
        self._layer_done()


def _text_by_text(forward: Callable[..., torch.Tensor], texts: int) -> Callable[..., torch.Tensor]:
    """Returns the forward pass of a layer that takes the texts of a batch one after another."""

    def part(value: Any, number: int) -> Any:
        if isinstance(value, tuple):
            return tuple(part(item, number) for item in value)
        batched = isinstance(value, torch.Tensor) and value.dim() > 1 and len(value) == texts
        return value[number : number + 1] if batched else value

    def passed(*args: Any, **options: Any) -> torch.Tensor:
        return torch.cat([
            forward(*part(args, number), **{key: part(value, number) for key, value in options.items()})
            for number in range(texts)
        ])  # fmt: skip

    return passed


class _LazyLinear(nn.Module):
    """Linear module whose weight is read when it is used."""

    def __init__(self, weights: ModelWeights, weight: str, bias: str | None) -> None:
        super().__init__()
        self._weights, self._names = weights, (weight, bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the projection of x (…, in), which is (…, out)."""
        out: torch.Tensor = self._weights.projection(*self._names)(x)
        return out


def _empty_model(config: PreTrainedConfig) -> Any:
    """Returns transformers' model without parameters; its buffers (rotary frequencies, scales) are computed."""
    make: Any = AutoModelForCausalLM.from_config
    with init_empty_weights(include_buffers=False):
        model: Any = make(config, dtype=torch.float32)
    return model.eval()


def _fill(model: nn.Module, embedding: nn.Module, weights: ModelWeights, text: TextModel) -> None:
    """Replaces each linear module by a lazy one and reads the other parameters.

    Raises:
        UnsupportedFormat: See `forward_logits`.
    """
    for path, module in list(model.named_modules()):
        parent, _, leaf = path.rpartition(".")
        if isinstance(module, nn.Linear):
            bias = None if module.bias is None else _own_name(text, f"{path}.bias")
            linear = _LazyLinear(weights, _own_name(text, f"{path}.weight"), bias)
            setattr(model.get_submodule(parent), leaf, linear)
        elif module is not embedding:
            for name, parameter in list(module.named_parameters(recurse=False)):
                own = _own_name(text, f"{path}.{name}")
                vector = weights.vector(own) if parameter.dim() == 1 else None
                if vector is None:
                    raise UnsupportedFormat(f"{own!r} is neither a vector nor the weight of a linear module.")
                setattr(module, name, _parameter(vector))


def _own_name(text: TextModel, name: str) -> str:
    if name not in text.names:
        raise UnsupportedFormat(
            f"{type(text.config).__name__} describes a model with {name!r}, which the checkpoint does not have."
        )
    return text.names[name]


def _layers(model: Any, count: int) -> nn.ModuleList:
    lists = (module for module in model.base_model.modules() if isinstance(module, nn.ModuleList))
    return next(layers for layers in lists if len(layers) == count)


def _parameter(values: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(values.float(), requires_grad=False)
