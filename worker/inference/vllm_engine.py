"""vLLM behind the interface of the reference engine."""

from dataclasses import dataclass
from typing import ClassVar

from services.engines.vllm_request import sampling_fields
from services.errors import NotReady
from services.generate import Event, GenerationRequest
from services.generate.sequence import SequenceState
from worker.inference.served_engine import ServedEngine


@dataclass(slots=True, eq=False, kw_only=True)
class VllmEngine(ServedEngine):
    """The sequences of one model, with or without an adapter, on a server that others share."""

    name: ClassVar[str] = "vLLM"
    starting: ClassVar[str] = "starting vLLM"
    install_hint: ClassVar[str] = (
        "Install the version of llguidance that worker/Dockerfile.vllm names in vLLM's environment."
    )

    def check_options(self, request: GenerationRequest) -> None:
        """Raises UnsupportedOption if vLLM does not have a setting of a request."""
        sampling_fields(request.sampling)

    def end_of_stream(self, sequence: SequenceState) -> Event:
        """Returns a failure: a stream of vLLM ends with the last token of its sequence."""
        return sequence.fail(NotReady("vLLM closed the stream before the output was complete.", "Try again."))
