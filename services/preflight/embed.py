"""Preflight of `embed`."""

from services.architectures.checkpoint_reader import read_checkpoint
from services.errors import InvalidRequest
from services.kinds.embed import EmbedRequest
from services.preflight.loaded_model import plan_loaded_model
from services.preflight.plan import Inputs, Plan
from services.templates import check_text


def plan(request: EmbedRequest, inputs: Inputs) -> Plan:
    """Returns the plan of an embed job.

    Raises:
        InvalidText: a text is not valid Unicode.
        InvalidRequest: more dimensions than the model has.
        GraftwerkError: model and adapters cannot be loaded together.
    """
    for text in request.inputs:
        if isinstance(text, str):
            check_text(text)
    plan = plan_loaded_model(request, inputs)
    if request.dimensions is not None and not inputs.waiting:
        width = read_checkpoint(inputs.folders[request.model]).config.hidden_size
        check_dimensions(request, width)
    return plan


def check_dimensions(request: EmbedRequest, width: int) -> None:
    """Refuses more dimensions than the model's vectors have. Raises InvalidRequest."""
    if request.dimensions is not None and request.dimensions > width:
        raise InvalidRequest(
            f"dimensions is {request.dimensions}, and the vectors of {request.model!r} have {width} numbers.",
            f"Set dimensions to at most {width}, or leave it out.",
        )
