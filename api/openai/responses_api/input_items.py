"""Input of a kept response as items, page by page."""

from collections.abc import Iterable, Iterator
from typing import Literal

from pydantic import BaseModel, Field

from api.openai.errors import InvalidParameter
from api.openai.responses_api.items import Json
from api.openai.responses_api.kept import Kept, turns_of
from services.templates import Message


class InputItemsQuery(BaseModel):
    """Query parameters of a page of input items."""

    after: str | None = Field(default=None, description="The item before the page.")
    limit: int = Field(default=20, ge=1, le=100)
    order: Literal["asc", "desc"] = Field(default="desc", description="desc: the last item first.")


def input_page(kept: Kept, query: InputItemsQuery) -> Json:
    """Returns a page of the conversation that a response answers, without the instructions.

    Raises:
        InvalidParameter: `after` is not one of the items.
    """
    items = [
        {"id": f"in_{kept.job.id}_{number}", **item} for number, item in enumerate(_items(turns_of(kept)))
    ]
    if query.order == "desc":
        items.reverse()
    ids = [item["id"] for item in items]
    if query.after is not None and query.after not in ids:
        raise InvalidParameter("after", f"The response has no input item {query.after!r}.")
    start = 0 if query.after is None else ids.index(query.after) + 1
    page = items[start : start + query.limit]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": start + query.limit < len(items),
    }


def _items(messages: Iterable[Message]) -> Iterator[Json]:
    for message in messages:
        if message.role == "tool":
            output = {"call_id": message.tool_call_id or "", "output": message.content}
            yield {"type": "function_call_output", "status": "completed", **output}
            continue
        if message.content or not message.tool_calls:
            yield {
                "type": "message",
                "role": message.role,
                "status": "completed",
                "content": [_part(message)],
            }
        for call in message.tool_calls or ():
            own = {"call_id": call.id or "", "name": call.function.name, "arguments": call.function.arguments}
            yield {"type": "function_call", "status": "completed", **own}


def _part(message: Message) -> Json:
    if message.role == "assistant":
        return {"type": "output_text", "text": message.content, "annotations": [], "logprobs": []}
    return {"type": "input_text", "text": message.content}
