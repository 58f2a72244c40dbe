"""Preflight of `embed`."""

from services.kinds.embed import EmbedRequest
from services.preflight.loaded_model import plan_loaded_model
from services.preflight.plan import Inputs, Plan
from services.templates import check_text


def plan(request: EmbedRequest, inputs: Inputs) -> Plan:
    """Returns the plan of an embed job.

    Raises:
        InvalidText: a text is not valid Unicode.
        GraftwerkError: model and adapters cannot be loaded together.
    """
    for text in request.inputs:
        if isinstance(text, str):
            check_text(text)
    return plan_loaded_model(request, inputs)
