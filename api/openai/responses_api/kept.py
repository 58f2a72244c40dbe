"""Responses that are kept: with their job, as long as its record. Others can be neither retrieved nor continued."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from pydantic import BaseModel, ConfigDict

from api.openai.errors import InvalidParameter
from api.openai.job_waiter import generated
from api.openai.messages import ChatMessage
from api.openai.responses_api.items import Json
from api.state import state
from services.errors import JobNotFound
from services.jobs.status import ENDED, Job
from services.kinds.generate import GenerateRequest, Output
from services.kinds.shared import MESSAGES_LIMIT
from services.templates import Message

ID = re.compile(r"resp_([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})")

CONVERSATION_CHARACTERS = 4_000_000
"""Most characters of a conversation: the record of each response in a chain has all of it."""


class ResponseNotFound(JobNotFound):
    """No response with this id is kept."""

    def __init__(self, response_id: str, param: str | None = None) -> None:
        super().__init__(
            f"There is no response {response_id!r}.",
            "It was created with store false, was deleted, or has expired.",
        )
        self.param = param


class Note(BaseModel):
    """Facts of a response that its job does not have.

    `echo` are the parameters that a response repeats, `ignored` those that were left out, and `system` is the system text at the
    beginning of the conversation, without the instructions.
    """

    model_config = ConfigDict(frozen=True)

    echo: Json
    ignored: list[str]
    system: str = ""


@dataclass(frozen=True, slots=True)
class Kept:
    """A kept response: its job and its note."""

    job: Job
    note: Note


def response_id(job: Job) -> str:
    """Returns the id of a job's response."""
    return f"resp_{job.id}"


def find(given_id: str, param: str | None = None) -> Kept:
    """Returns a kept response. Raises ResponseNotFound."""
    found = ID.fullmatch(given_id)
    note = state().queue.note(found[1]) if found else None
    if found is None or note is None:
        raise ResponseNotFound(given_id, param)
    try:
        return Kept(state().queue.get(found[1]), Note.model_validate_json(note))
    except JobNotFound:
        raise ResponseNotFound(given_id, param) from None


def conversation_of(given_id: str) -> list[Message]:
    """Returns the turns up to a kept response and with it, without the instructions.

    Raises:
        ResponseNotFound: no such response is kept.
        InvalidParameter: the response is not completed.
        GraftwerkError: its job failed.
    """
    kept = find(given_id, "previous_response_id")
    if kept.job.status not in ENDED:
        raise InvalidParameter(
            "previous_response_id", f"{given_id} is {kept.job.status}: retrieve it until it is completed."
        )
    (output,) = generated(kept.job).outputs
    return [*turns_of(kept), _turn(output)]


def turns_of(kept: Kept) -> list[Message]:
    """Returns the turns that a kept response answers, without the instructions."""
    request = kept.job.request
    assert isinstance(request, GenerateRequest)
    _, turns = split_system(request.messages or [])
    system = [Message(role="system", content=kept.note.system)] if kept.note.system else []
    return [*system, *turns]


def split_system(messages: Sequence[Message]) -> tuple[str, list[Message]]:
    """Returns the system text at the beginning of a conversation, and the other messages."""
    first = list(takewhile(lambda message: message.role == "system", messages))
    return "\n\n".join(message.content for message in first), [*messages[len(first) :]]


def with_conversation(
    request: GenerateRequest, earlier: Sequence[Message], instructions: str
) -> tuple[GenerateRequest, str]:
    """Returns a request that continues earlier turns under these instructions, and the conversation's own system text.

    The instructions and the system messages at the beginning are one system message: most templates take no second one.

    Raises:
        InvalidParameter: the conversation is too long.
    """
    system, turns = split_system([*earlier, *(request.messages or [])])
    texts = [text for text in (instructions, system) if text]
    first = [Message(role="system", content="\n\n".join(texts))] if texts else []
    messages = [*first, *turns]
    characters = sum(len(text) for message in messages for text in message.texts)
    if len(messages) > MESSAGES_LIMIT or characters > CONVERSATION_CHARACTERS:
        raise InvalidParameter(
            "previous_response_id" if earlier else "input",
            f"The conversation has {len(messages)} turns with {characters} characters; at most {MESSAGES_LIMIT} and "
            f"{CONVERSATION_CHARACTERS} are taken. Begin a new one with the turns that matter as input.",
        )
    return request.model_copy(update={"messages": messages}), system


def _turn(output: Output) -> Message:
    calls = [
        {"id": call.id, "function": {"name": call.name, "arguments": call.arguments}}
        for call in output.tool_calls or []
    ]
    turn = {"role": "assistant", "content": output.text or "", "tool_calls": calls}
    return ChatMessage.model_validate(turn).message
