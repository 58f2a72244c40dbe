"""An adapter as a GGUF file that llama.cpp loads next to its base.

Keys, names and the order of rows are those of ggml-org/llama.cpp `convert_lora_to_gguf.py`; rows of B are in the order of the base's.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import gguf
import torch

from services.adapters.adapter import read_adapter
from services.adapters.gguf_adapter import GgufAdapter, gguf_adapter
from services.adapters.lora_tensors import LoraPair
from services.adapters.stack import check_stack
from services.architectures.checkpoint_reader import read_checkpoint
from services.architectures.expected_tensors import row_of
from services.architectures.key_map import rotary_heads
from services.checkpoints.blocks import tensor_bytes
from services.checkpoints.folder_spec import WrittenModel
from services.checkpoints.gguf_plans import ARCHITECTURES, architecture_of
from services.checkpoints.rotary import halves_to_interleaved
from services.checkpoints.tensor_reader import TORCH_DTYPES, TensorReader, check_finite
from services.checkpoints.write_hooks import WriteHooks
from services.checkpoints.write_ledger import TensorPlan
from services.errors import UnsupportedAdapter
from services.files.disk_full import disk_full_as_error
from services.progress import Progress

ADAPTER_FILE = "adapter.gguf"


def convert_adapter(
    base: Path, source: tuple[str, Path], target: Path, dtype: str | None, hooks: WriteHooks | None = None
) -> tuple[GgufAdapter, WrittenModel]:
    """Writes an adapter (name, folder) of the base in `base` as `adapter.gguf` into the empty folder `target`.

    Errors of `read_checkpoint`, `read_adapter`, `check_stack` and `gguf_adapter` are raised as they are. Peak memory: the adapter's
    tensors.

    Raises:
        UnsupportedAdapter: It changes a tensor that GGUF has no name for.
        NonFiniteTensor: A tensor holds NaN or infinity, or a value is too large for the dtype.
        DiskFull: The volume has no space for the file.
        JobCanceled: The caller has canceled the work.
    """
    hooks = hooks or WriteHooks()
    name, folder = source
    checkpoint = read_checkpoint(base)
    stack = check_stack(checkpoint, [read_adapter(folder, name)])
    planned = gguf_adapter(checkpoint, stack.adapters[0], dtype)
    writer = _writer(planned, base.name)
    plans, digests = [], {}
    with TensorReader() as reader:
        for number, (key, tensor, code) in enumerate(_tensors(reader, planned)):
            hooks.check_canceled()
            hooks.report(Progress("writing tensors", number, 2 * len(planned.adapter.pairs), "tensors"))
            plans.append(TensorPlan(key, code, tuple(tensor.shape)))
            digests[key] = hashlib.sha256(tensor_bytes(tensor)).hexdigest()
            data = tensor.view(torch.uint8) if code == "BF16" else tensor
            writer.add_tensor(
                key, data.numpy(), raw_shape=data.shape, raw_dtype=gguf.GGMLQuantizationType[code]
            )
        with disk_full_as_error(target, planned.size_bytes):
            writer.write_header_to_file(target / ADAPTER_FILE)
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
    return planned, WrittenModel(folder=target, plans=plans, digests=digests, size_bytes=planned.size_bytes)


def _writer(planned: GgufAdapter, base: str) -> gguf.GGUFWriter:
    writer = gguf.GGUFWriter(path=None, arch=architecture_of(planned.base.config))
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, planned.alpha)
    writer.add_name(planned.adapter.name)
    writer.add_base_model_count(1)
    writer.add_base_model_name(0, base)
    return writer


def _tensors(reader: TensorReader, planned: GgufAdapter) -> Iterator[tuple[str, torch.Tensor, str]]:
    """Yields name, contiguous tensor and dtype of each half."""
    config = planned.base.config
    names = gguf.get_tensor_name_map(ARCHITECTURES[architecture_of(config)], config.num_hidden_layers)
    for name, pair in planned.adapter.pairs.items():
        text = config.model_class.text_name(name)
        stored = None if text is None else names.get_name(text, try_suffixes=(".weight",))
        if stored is None:
            raise UnsupportedAdapter(
                f"Adapter {planned.adapter.name} changes {name!r}, which is not a tensor of the text model.",
                "Merge it into the base instead.",
            )
        heads = rotary_heads(row_of(config, name), config)
        for half in ("a", "b"):
            code = planned.dtype_of(pair, half)
            yield (
                f"{stored}.lora_{half}",
                _half(reader, planned, pair, half, heads).to(TORCH_DTYPES[code]),
                code,
            )


def _half(reader: TensorReader, planned: GgufAdapter, pair: LoraPair, half: str, heads: int) -> torch.Tensor:
    header = pair.a if half == "a" else pair.b
    tensor = reader.view(header)
    check_finite(header.name, tensor)
    if half == "a":
        return tensor.contiguous()
    factor = planned.factor(pair)
    tensor = tensor if factor == 1 else tensor.float() * factor
    return (halves_to_interleaved(tensor, heads) if heads else tensor).contiguous()
