"""Conversion: each tensor of a checkpoint is joined or decoded, reordered, cast and written in the other layout."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from services.architectures.checkpoint import Checkpoint
from services.architectures.checkpoint_reader import read_checkpoint
from services.architectures.gguf_vocabulary import ARRAYS, read_gguf_vocabulary
from services.architectures.output_spec import OutputFormat, OutputSpec, plan_output
from services.checkpoints.blocks import source_blocks
from services.checkpoints.folder_spec import MAX_SHARD_BYTES, FolderSpec, WrittenModel
from services.checkpoints.importance import ImportanceMatrix
from services.checkpoints.journal import stamps, work_identity
from services.checkpoints.model_check import check_class
from services.checkpoints.tensor_reader import TORCH_DTYPES, TensorReader, check_finite
from services.checkpoints.write_hooks import WriteHooks
from services.checkpoints.writers import write_model
from services.files.gguf_files import read_gguf_model
from services.files.gguf_origin import GgufOrigin
from services.tokenizers import check_tokenizer
from services.tokenizers.gguf_tokenizer import write_gguf_tokenizer


@dataclass(frozen=True, slots=True)
class ConvertOptions:
    """Options of a conversion. Their `repr` identifies the work in journals and manifests: renaming a field disowns old ones.

    Attributes:
        dtype: Code of the dtype ("F16", for GGUF also "Q8_0"); None keeps each tensor's own.
        max_shard_bytes: Largest size of a shard in Hugging Face's layout.
        instruct: Llama 3: the model is an instruct model.
        output_format: Layout that is written.
        ranks: Number of ranks of Meta's layout; None keeps the source's.
        template: Name of a prompt template for GGUF's metadata and Modelfile.
        origin: Name, licence and base models for GGUF's metadata. Absent from the `repr`: no tensor depends on it.
        importance: Importance matrix of a GGUF output. Absent from the `repr`, which journals of versions without it have;
            `identity` is the whole.
    """

    dtype: str | None = None
    max_shard_bytes: int = MAX_SHARD_BYTES
    instruct: bool = False
    output_format: OutputFormat = "huggingface"
    ranks: int | None = None
    template: str | None = None
    origin: GgufOrigin | None = field(default=None, repr=False)
    importance: ImportanceMatrix | None = field(default=None, repr=False)

    @property
    def identity(self) -> tuple[object, ...]:
        """Everything that distinguishes the work of these options from that of others, by its `repr`."""
        return (self,) if self.importance is None else (self, self.importance.identity)


def convert(
    source: Path, target: Path, options: ConvertOptions | None = None, hooks: WriteHooks | None = None
) -> tuple[Checkpoint, WrittenModel]:
    """Writes the checkpoint in `source` in another layout into the empty folder `target`.

    With a journal (`WriteHooks`) `target` may hold the files of a killed run, whose finished tensors are reused. Errors of
    `read_checkpoint` and `check_output` are raised as they are.

    Peak memory: a few blocks of rows (blocks.BLOCK_ELEMENTS), even where tensors are joined, permuted or cast.

    Raises:
        NonFiniteTensor: A tensor holds NaN or infinity, or a value is too large for the dtype.
        ConfigMismatch: The ranks hold different values of a tensor that each must have whole.
        DiskFull: The volume has no space for the tensors.
        JobCanceled: The caller has canceled the work.
    """
    options, hooks = options or ConvertOptions(), hooks or WriteHooks()
    checkpoint = read_checkpoint(source, instruct=options.instruct)
    if checkpoint.config.model_type != "llama":  # LLaMA's is checked by its table alone, without transformers
        check_class(checkpoint)
    with _tokenizer_folder(checkpoint) as tokenizer_folder:
        check_tokenizer(tokenizer_folder)
        return checkpoint, _written(target, checkpoint, tokenizer_folder, options, hooks)


@contextmanager
def _tokenizer_folder(checkpoint: Checkpoint) -> Iterator[Path]:
    """Yields the folder of the tokenizer's files, which are rebuilt for a GGUF file."""
    if checkpoint.layout != "gguf":
        yield checkpoint.tokenizer_folder
        return
    with TemporaryDirectory(prefix="tokenizer-") as folder:
        vocabulary = read_gguf_vocabulary(read_gguf_model(checkpoint.folder, ARRAYS))
        write_gguf_tokenizer(vocabulary, Path(folder))
        yield Path(folder)


def _written(
    target: Path, checkpoint: Checkpoint, tokenizer_folder: Path, options: ConvertOptions, hooks: WriteHooks
) -> WrittenModel:
    output = converted_output(checkpoint, options)
    spec = FolderSpec(
        output=output, base_folder=checkpoint.folder, tokenizer_folder=tokenizer_folder,
        max_shard_bytes=options.max_shard_bytes,
        template=options.template, origin=options.origin, importance=options.importance,
        identity=work_identity("convert", *options.identity, output.config, output.tensors, stamps(checkpoint.weight_files)),
    )  # fmt: skip
    with TensorReader() as reader:

        def produce(name: str) -> Iterator[torch.Tensor]:
            for block in source_blocks(reader, checkpoint.tensors[name]):
                yield cast(name, block, output.tensors[name][0])

        return write_model(target, spec, produce, hooks)


def converted_output(checkpoint: Checkpoint, options: ConvertOptions) -> OutputSpec:
    """Returns the output of a conversion."""
    return plan_output(
        options.output_format, checkpoint.config, checkpoint.stored, vocabulary=checkpoint.vocabulary,
        dtype=options.dtype, ranks=options.ranks or checkpoint.ranks, has_imatrix=options.importance is not None,
    )  # fmt: skip


def cast(name: str, tensor: torch.Tensor, dtype: str) -> torch.Tensor:
    """Returns a block of a tensor in the requested dtype.

    Raises:
        NonFiniteTensor: A value is too large for the dtype.
    """
    if tensor.dtype == TORCH_DTYPES[dtype]:
        return tensor
    converted = tensor.to(TORCH_DTYPES[dtype])
    check_finite(name, converted)
    return converted
