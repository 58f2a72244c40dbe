"""The endpoints `/v1/responses`."""

from flask import Response
from flask_openapi3.blueprint import APIBlueprint
from pydantic import BaseModel, Field

from api.openai import errors
from api.openai.body import parse
from api.openai.errors import InvalidParameter
from api.openai.fixed_model import read_body_with_model
from api.openai.job_waiter import JobWaiter, connection_check, generated, submit
from api.openai.models import is_forwarded
from api.openai.responses import json_object
from api.openai.responses_api.body import NAMES, ResponsesBody
from api.openai.responses_api.events import ResponseEvents
from api.openai.responses_api.input_items import InputItemsQuery, input_page
from api.openai.responses_api.kept import Kept, Note, conversation_of, find, response_id, with_conversation
from api.openai.responses_api.replay import ReplayedEvents
from api.openai.responses_api.response import ResponseObject
from api.openai.schemas import ChatBody, generate_request
from api.openai.streaming import event_stream, replayed_stream
from api.openai.views import REFUSALS, TAG, WORK_REFUSALS
from api.openapi import SECURITY, body_of, object_of
from api.state import state
from services.jobs.events import keeps_all_events
from services.kinds.generate import GenerateRequest

METADATA = {"origin": "openai", "endpoint": "responses"}
"""Metadata of the jobs of these endpoints."""

api = APIBlueprint("responses", __name__, url_prefix="/v1", abp_tags=[TAG], abp_security=SECURITY)
errors.handle(api)


class ResponsePath(BaseModel):
    """Path parameter `response_id`."""

    response_id: str


class RetrieveQuery(BaseModel):
    """Query parameters of a kept response."""

    stream: bool = False
    starting_after: int | None = Field(
        default=None, ge=0, description="Number of the last event that is known."
    )


@api.post(
    "/responses",
    openapi_extensions=body_of(ResponsesBody),
    responses={**object_of(200), **WORK_REFUSALS},
)
def create() -> Response:
    """Generate the next turn of a conversation, which may be kept and continued by its id.

    A `generate` job produces it. It is canceled when the client disconnects, unless it runs in the background.
    With `stream` the response arrives as server-sent events.
    """
    value = read_body_with_model()
    body = parse(ResponsesBody, value)
    request, system = _job_request(body)
    note = Note(echo=body.echo(), ignored=body.left_out(value), system=system)
    waiter = submit(
        state(), request, note=note.model_dump_json() if body.store else "", is_background=body.background
    )
    response = ResponseObject(waiter.job, note)
    if body.stream:
        return event_stream(waiter, ResponseEvents(response))
    if body.background:
        return json_object(ResponseObject.of(Kept(waiter.job, note)))
    job = waiter.ended()
    return json_object(ResponseObject(job, note).whole(generated(job)))


@api.get("/responses/<response_id>", responses={**object_of(200), **REFUSALS, **object_of(400, 503)})
def retrieve(path: ResponsePath, query: RetrieveQuery) -> Response:
    """Get a kept response, whichever state its job is in.

    With `stream` its events come as server-sent events from the first one on, or after the number `starting_after`, until it is
    completed.
    """
    kept = find(path.response_id)
    if query.stream:
        after = -1 if query.starting_after is None else query.starting_after
        waiter = JobWaiter(state(), kept.job, connection_check(), is_background=True)
        is_whole = keeps_all_events(state().queue.redis, kept.job.id)
        response = ResponseObject(kept.job, kept.note)
        return replayed_stream(waiter, ReplayedEvents(response, after, is_whole=is_whole))
    if query.starting_after is not None:
        raise InvalidParameter("starting_after", "It counts the events of a stream: send stream=true too.")
    return json_object(ResponseObject.of(kept))


@api.get(
    "/responses/<response_id>/input_items",
    responses={**object_of(200), **REFUSALS, **object_of(400, 503)},
)
def list_input_items(path: ResponsePath, query: InputItemsQuery) -> Response:
    """List the items that a kept response answers, those of earlier responses included."""
    return json_object(input_page(find(path.response_id), query))


@api.delete("/responses/<response_id>", responses={**object_of(200), **REFUSALS, **object_of(409, 503)})
def delete(path: ResponsePath) -> Response:
    """Delete a kept response with its job's record."""
    kept = find(path.response_id)
    state().queue.delete(kept.job.id)
    return json_object({"id": response_id(kept.job), "object": "response", "deleted": True})


@api.post(
    "/responses/<response_id>/cancel", responses={**object_of(200), **REFUSALS, **object_of(400, 409, 503)}
)
def cancel(path: ResponsePath) -> Response:
    """Cancel a response that runs in the background."""
    kept = find(path.response_id)
    if not kept.note.echo["background"]:
        raise InvalidParameter("response_id", "Only a response with background true can be canceled.")
    job = state().queue.cancel(kept.job.id)
    return json_object(ResponseObject.of(Kept(job, kept.note)))


def _job_request(body: ResponsesBody) -> tuple[GenerateRequest, str]:
    """Returns the request of the job, and the conversation's system text without the instructions.

    Raises:
        InvalidParameter, ModelNotFound, ResponseNotFound: a parameter is wrong.
    """
    earlier = [] if body.previous_response_id is None else conversation_of(body.previous_response_id)
    request = generate_request(parse(ChatBody, body.chat(), NAMES), METADATA, NAMES)
    request, system = with_conversation(request, earlier, body.instructions or "")
    update = {
        "fit_context": True if body.truncation == "auto" else request.fit_context,
        "forward": request.forward and not is_forwarded(),
    }
    return request.model_copy(update=update), system
