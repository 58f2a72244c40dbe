"""The protocol of engines: the sequences of one model, in this process or in a server's."""

from collections.abc import Collection
from typing import Protocol

from services.generate import Event, GenerationRequest, MemoryShortage


class ModelEngine(Protocol):
    """Sequences of one model, in this process or in a server's."""

    @property
    def computes_here(self) -> bool:
        """True if `step` computes, False if it takes what a server has sent."""

    @property
    def is_lost(self) -> bool:
        """True once every `step` would raise."""

    @property
    def stage(self) -> str | None:
        """Progress of jobs while the engine takes no requests yet, else None."""

    @property
    def free_slots(self) -> int:
        """Number of further sequences that can start with the next step."""

    @property
    def most_tokens(self) -> int | None:
        """Tokens of the longest sequence that fits into its memory; None if only the context limits it."""

    def memory_shortage(self, request_ids: Collection[str]) -> MemoryShortage | None:
        """Returns the memory for which all sequences of these requests wait; None if one of them is being computed."""

    def submit(self, request: GenerationRequest) -> str:
        """Queues a request and returns its id; raises as `Engine.submit`."""

    def cancel(self, request_id: str) -> None:
        """Ends all outputs of a request with the next step. May be called from any thread."""

    def finish(self, request_id: str, index: int) -> None:
        """Ends one output with the next step, as if the model had ended it."""

    def step(self) -> list[Event]:
        """Returns the next events. Raises if the state of the engine is lost."""

    def drop_all(self) -> None:
        """Ends all requests, at once or with the next step: their jobs are gone."""

    def close(self) -> None:
        """Releases what the engine holds outside of this process."""
