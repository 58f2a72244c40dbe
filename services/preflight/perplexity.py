"""Preflight of `perplexity`."""

from services.errors import InvalidRequest
from services.kinds.perplexity import PerplexityRequest
from services.models.store import ModelStore
from services.preflight.loaded_model import plan_loaded_model
from services.preflight.plan import Inputs, Plan
from services.templates import check_text

SCORED_TEXT_BYTES = 16 * 2**20
"""Size limit of the text of one perplexity job; the test text of WikiText-103 has 1.3 MB."""


def plan(request: PerplexityRequest, inputs: Inputs) -> Plan:
    """Returns the plan of a perplexity job.

    Raises:
        InvalidText: the text is not valid Unicode.
        InvalidRequest, SourceNotFound, InvalidName: the text file cannot be used.
        GraftwerkError: model and adapters cannot be loaded together.
    """
    if request.text is not None:
        check_text(request.text)
    if request.text_file is not None:
        check_text_file(request.text_file, inputs.store)
    return plan_loaded_model(request, inputs)


def check_text_file(name: str, store: ModelStore) -> None:
    """Refuses a text file that is missing or too large.

    Raises:
        InvalidRequest, SourceNotFound, InvalidName: the text file cannot be used.
    """
    path = store.incoming(name)
    if not path.is_file():
        raise InvalidRequest(f"{name!r} is not a file.", "Name a UTF-8 text file.")
    size_bytes = path.stat().st_size
    if size_bytes > SCORED_TEXT_BYTES:
        raise InvalidRequest(
            f"{name!r} has {size_bytes} bytes; at most {SCORED_TEXT_BYTES} are scored in one job.",
            "Score a part of it.",
        )
