"""`python -m tests.fuzz.reading`: reads the files of a folder in every way that applies, and reports exceptions that are not ours."""

import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from services.adapters.adapter import is_adapter, read_adapter
from services.adapters.stack import check_stack, merged_tensors
from services.architectures.checkpoint_reader import read_checkpoint
from services.architectures.gguf_pretokenizer import pretokenizer_name
from services.architectures.tokenizer_files import TokenizerFiles
from services.errors import GraftwerkError
from services.files.front_matter import front_matter
from services.isolation.serving import serve
from services.models.imports import list_archive
from services.models.summary import describe_folder


def _side_files(folder: Path) -> None:
    files = TokenizerFiles(folder)
    for question in (
        files.added_tokens,
        files.named_tokens,
        files.eos_ids,
        files.has_scaled_rope,
        files.chat_template,
    ):
        _ours(question)


def _ours(question: Callable[[], object]) -> bool:
    """Returns True for an answer, False for one of our errors."""
    try:
        question()
    except GraftwerkError as error:
        f"{error.message} {error.hint}".encode()
        return False
    return True


def _questions(folder: Path, base: Path) -> Iterator[Callable[[], object]]:
    yield lambda: describe_folder(folder, "model").model_dump_json()
    if is_adapter(folder):
        yield lambda: merged_tensors(
            (stack := check_stack(read_checkpoint(base), [read_adapter(folder, experts=True)])).base,
            stack.adapters,
        )
    if (folder / "a.zip").exists():
        yield lambda: list_archive(folder / "a.zip", limit_bytes=2**20)
    if (folder / "tokenizer.json").exists():
        yield lambda: pretokenizer_name(folder)
    yield lambda: read_checkpoint(folder, instruct=True)
    yield lambda: _side_files(folder)
    yield lambda: front_matter(folder)


def read(request: Mapping[str, str]) -> dict[str, Any]:
    """Returns the number of answers, and what escaped.

    Args:
        request: `folder`, and `base`, a sound base model that adapters are checked against.
    """
    answers = 0
    for question in _questions(Path(request["folder"]), Path(request["base"])):
        try:
            answers += _ours(question)
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001  # this is what is looked for
            return {"escaped": traceback.format_exc()}
    return {"answers": answers}


if __name__ == "__main__":
    serve(read)
