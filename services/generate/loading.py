"""Loading of a model and its tokenizer from a folder. No code from the folder is run."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from services.architectures.tokenizer_files import TokenizerFiles
from services.errors import (
    IncompleteCheckpoint,
    UnreadableFile,
    UnsupportedFormat,
    UnsupportedOption,
    VocabularyMismatch,
    WrongModelKind,
)
from services.generate.chat_template import ChatTemplate
from services.generate.masks import window_of
from services.generate.quantization import held_bytes, keep_arithmetic, quantization_config
from services.generate.row_groups import attention_name
from services.generate.row_layers import use_row_layers
from services.generate.row_linear import use_row_linear
from services.kinds.shared import Quantization
from services.progress import Progress, Report, ignore_progress
from services.tokenizers import Tokenizer, load_tokenizer

DTypeName = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in memory. `rows` is the number of rows of its embeddings; `context_length` counts tokens."""

    model: PreTrainedModel
    tokenizer: Tokenizer
    folder: Path
    dtype: torch.dtype
    device: torch.device
    size_bytes: int
    context_length: int
    rows: int
    chat_template: ChatTemplate | None = None

    @property
    def device_name(self) -> str:
        """Display name of the device, for example "cuda:0"."""
        return str(self.device)

    @property
    def dtype_name(self) -> str:
        """Name of the dtype, for example "bfloat16"."""
        return str(self.dtype).removeprefix("torch.")


USABLE_SHARE = 0.8
"""Share of a GPU's free memory that a model's weights may take; the rest is for the KV cache."""


def load_model(
    folder: Path,
    *,
    device: str = "cpu",
    dtype: DTypeName | None = None,
    rope_alpha: float | None = None,
    quantization: Quantization | None = None,
    report: Report = ignore_progress,
) -> LoadedModel:
    """Loads a Hugging Face model folder for generation.

    Args:
        device: "cpu", "cuda", "cuda:N", or "auto" for the first GPU if there is one. If that GPU is too small, all GPUs
            share the model's layers, unless one was named by its number.
        dtype: None is float32 on a CPU, and bfloat16 on a GPU, or float16 if that has no bfloat16.
        rope_alpha: NTK scaling of the rotary base, `theta * alpha ** (d / (d - 2))` with d = head_dim (posts of
            "bloc97", r/LocalLLaMA 2023), which also stretches the context by `alpha`.
        quantization: "8bit" or "4bit", by bitsandbytes; see `services.generate.quantization`.

    Raises:
        WrongModelKind: the folder is an original checkpoint, an adapter, or not a model.
        IncompleteCheckpoint: tensors are missing; transformers would fill them with random numbers.
        VocabularyMismatch: the tokenizer has more tokens than the embeddings have rows.
        UnsupportedOption, UnsupportedFormat, UnreadableFile, UnreadableTokenizer.
    """
    check_kind(folder)
    target = resolve_device(device)
    whole = read_config(folder)
    config = whole.get_text_config()
    context_length = context_length_of(config)
    if rope_alpha is not None:
        _scale_rotary_base(config, rope_alpha)
        context_length = int(context_length * max(1.0, rope_alpha))
    tokenizer = load_tokenizer(folder)
    size_bytes = sum(
        file.stat().st_size for file in folder.iterdir() if file.suffix in {".safetensors", ".bin"}
    )
    report(Progress("loading", 0, size_bytes, "bytes"))
    chosen = choose_dtype(dtype, target)
    placement: dict[str, Any] = {} if config is whole else {"key_mapping": TEXT_KEYS}
    if target.type != "cpu":
        placement["device_map"] = device_map(device, target, size_bytes, _free_bytes())
    if quantization is not None:
        placement["quantization_config"] = quantization_config(quantization, chosen)
    model = _read_weights(folder, config, chosen, placement)
    keep_arithmetic(model)
    use_row_linear(model)
    use_row_layers(model)
    report(Progress("loading", size_bytes, size_bytes, "bytes"))
    loaded = prepare(model, tokenizer, folder=folder, context_length=context_length)
    check_rows(tokenizer, loaded.rows, folder.name)
    return loaded


def check_rows(tokenizer: Tokenizer, rows: int, name: str) -> None:
    """Refuses a tokenizer with more tokens than a model's embeddings have rows.

    Raises:
        VocabularyMismatch: it has.
    """
    if tokenizer.text_vocabulary_size > rows:
        raise VocabularyMismatch(
            f"The tokenizer of {name} has {tokenizer.text_vocabulary_size} tokens "
            f"and the model {rows} rows of embeddings.",
            "Put the tokenizer that belongs to the model into its folder.",
        )


def prepare(
    model: PreTrainedModel, tokenizer: Tokenizer, *, folder: Path, context_length: int
) -> LoadedModel:
    """Returns a model that is already in memory as a `LoadedModel`."""
    chat_template = TokenizerFiles(folder).chat_template()
    anything: Any = model
    anything.eval()
    # A model's own sampling defaults would replace those of the request.
    make_config: Any = GenerationConfig
    anything.generation_config = make_config()
    embeddings: Any = model.get_input_embeddings()
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        folder=folder,
        dtype=model.dtype,
        device=model.device,
        size_bytes=held_bytes(model),
        context_length=context_length,
        rows=int(embeddings.weight.shape[0]),
        chat_template=None if chat_template is None else ChatTemplate(chat_template),
    )


def resolve_device(name: str) -> torch.device:
    """Returns the device of this name.

    Initializes CUDA only for "cuda" and "auto": a process that forks must not.

    Raises:
        UnsupportedOption: this machine does not have the device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, number = name.partition(":")
    if kind not in {"cpu", "cuda"} or (number and not number.isdigit()):
        raise UnsupportedOption(f"There is no device {name!r}.", 'Choose "auto", "cpu", "cuda" or "cuda:N".')
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise UnsupportedOption(
            f"The device {name} was requested and this machine has {torch.cuda.device_count()} CUDA devices.",
            'Choose "cpu", or give the worker a GPU (docker-compose.gpu.yml).',
        )
    return torch.device(name)


def check_kind(folder: Path) -> None:
    """Raises WrongModelKind if a folder is not a Hugging Face model."""
    if (folder / "config.json").is_file():
        return
    if (folder / "adapter_config.json").is_file():
        raise WrongModelKind(
            f"{folder.name} is an adapter, not a model.",
            "Name its base as the model and this folder as an adapter.",
        )
    if list(folder.glob("consolidated.*.pth")):
        raise WrongModelKind(
            f"{folder.name} is an original checkpoint; generating needs the Hugging Face layout.",
            "Run a convert job on it first.",
        )
    raise WrongModelKind(f"{folder.name} is not a model: it has no config.json.")


def read_config(folder: Path) -> Any:
    """Returns transformers' configuration of a folder. Raises UnsupportedFormat."""
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UnsupportedFormat(
            f"The config.json of {folder.name} describes no model that transformers knows: {error}.",
            "Code that comes with a model is never run.",
        ) from error


def context_length_of(config: Any) -> int:
    """Returns the number of tokens that the model computes rightly in a batch with others.

    It is the length that the model was trained for. Two kinds of models end earlier: rotary frequencies of the type "longrope"
    are other ones for all sequences of a batch once one of them is longer than `original_max_position_embeddings`; and a
    window that the KV cache has no mask for is not left.
    """
    sizes = [int(config.max_position_embeddings)]
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        original = rope.get("original_max_position_embeddings") or getattr(
            config, "original_max_position_embeddings", None
        )
        sizes.append(int(original or config.max_position_embeddings))
    if window_of(config) is None and getattr(config, "use_sliding_window", True):
        sizes.append(int(getattr(config, "sliding_window", None) or sizes[0]))
    return min(sizes)


def _scale_rotary_base(config: Any, alpha: float) -> None:
    if alpha <= 0:
        raise UnsupportedOption(f"rope_alpha must be above 0 and is {alpha}.")
    if "rope_theta" not in config.rope_parameters:
        raise UnsupportedOption(
            f"rope_alpha scales one rotary base; a model of type {config.model_type!r} has one for each type of layer.",
            "Leave rope_alpha out.",
        )
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    config.rope_parameters["rope_theta"] *= alpha ** (head_dim / (head_dim - 2))


def device_map(
    name: str, target: torch.device, size_bytes: int, free_bytes: Mapping[int, int]
) -> str | dict[str, str]:
    """Returns transformers' device map: all layers on one GPU, or "auto" over several if one is too small.

    Args:
        name: the requested device.
        free_bytes: free memory of each GPU, by its number.
    """
    one = {"": str(target)}
    room = free_bytes.get(target.index or 0, 0) * USABLE_SHARE
    return one if ":" in name or len(free_bytes) < 2 or size_bytes <= room else "auto"


def _free_bytes() -> dict[int, int]:
    return {number: torch.cuda.mem_get_info(number)[0] for number in range(torch.cuda.device_count())}


def choose_dtype(dtype: DTypeName | None, device: torch.device) -> torch.dtype:
    """Returns the dtype of a computation; None is the device's own."""
    names = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype is not None:
        return names[dtype]
    if device.type == "cpu":
        # Measured (docs/benchmarks.md): without AVX-512 or AMX, 16 bits are slower at every size but one row.
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


TEXT_KEYS = {
    r"^(model\.language_model|language_model\.model)\.": "model.",
    r"^language_model\.lm_head\.": "lm_head.",
}
"""Names of a text model's tensors within a multimodal checkpoint; its other towers are not loaded."""


def _read_weights(
    folder: Path, config: Any, dtype: torch.dtype, placement: dict[str, Any]
) -> PreTrainedModel:
    disable_progress_bar: Any = transformers_logging.disable_progress_bar
    disable_progress_bar()
    read: Any = AutoModelForCausalLM.from_pretrained
    model: PreTrainedModel
    try:
        model, details = read(
            folder,
            config=config,
            dtype=dtype,
            # Only the eager attention caps its scores, as Gemma 2 does.
            attn_implementation="eager"
            if getattr(config, "attn_logit_softcapping", None)
            else attention_name(config.model_type),
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            **placement,
        )
    except (OSError, ValueError, KeyError) as error:
        raise UnreadableFile(f"The weights of {folder.name} cannot be read: {error}.") from error
    missing = sorted(details["missing_keys"])
    if missing:
        raise IncompleteCheckpoint(
            f"{folder.name} lacks {len(missing)} tensors that its config needs, {missing[0]} among them.",
            "Fetch the missing files, or create the model again.",
        )
    return model
