"""Official `openai` client: chat, stream, tools, schema, embeddings, scoring.

Arguments: address of the service, name of the model, name of a model that takes tools.
"""

import json
import sys
from typing import Any

from asked import MESSAGES, NAMED, RAIN, TOOLS, Answer
from openai import OpenAI


def main(address: str, model: str, tool_model: str) -> dict[str, Any]:
    """Returns what was seen."""
    client = OpenAI(base_url=f"{address}/v1", api_key="none", timeout=300)
    greedy: Any = {"model": model, "temperature": 0, "max_tokens": 24}
    chat = client.chat.completions.create(messages=MESSAGES, **greedy)
    options: Any = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(client.chat.completions.create(messages=MESSAGES, **greedy, **options))
    offered = client.chat.completions.create(messages=MESSAGES, tools=TOOLS, **greedy)
    begun = [*MESSAGES, {"role": "assistant", "content": "The capital of France is"}]
    parsed = client.chat.completions.parse(
        messages=MESSAGES, response_format=Answer, **greedy | {"max_tokens": 64}
    )
    vectors = client.embeddings.create(model=model, input=["What is an alpaca?", "A llama."], dimensions=64)
    tokens = client.post(
        f"{address}/tokenize", body={"model": model, "prompt": "A llama."}, cast_to=dict[str, Any]
    )
    same = client.embeddings.create(model=model, input=[tokens["tokens"]], dimensions=64)
    scored = client.completions.create(
        prompt="The capital of France is Paris", echo=True, logprobs=1, **greedy | {"max_tokens": 1}
    )
    return {
        "models": [entry.id for entry in client.models.list()],
        "chat": chat.choices[0].message.content,
        "extension": (chat.model_extra or {})["graftwerk"],
        "stream": "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices),
        "usage": [chat.usage and chat.usage.total_tokens, chunks[-1].usage and chunks[-1].usage.total_tokens],
        "offered": offered.choices[0].message.content,
        "offered_ignored": (offered.model_extra or {})["graftwerk"]["ignored"],
        "continued": client.chat.completions.create(messages=begun, **greedy).choices[0].message.content,
        "parsed": parsed.choices[0].message.parsed and parsed.choices[0].message.parsed.model_dump(),
        "vectors": [item.embedding for item in vectors.data],
        "ids_vector": same.data[0].embedding,
        "called": required_call(client, tool_model),
        "scores": scored.choices[0].logprobs and scored.choices[0].logprobs.token_logprobs,
        "text": scored.choices[0].text,
    }


def required_call(client: OpenAI, model: str) -> dict[str, Any]:
    """Returns a required call, the same one streamed, and the answer to the tool's result."""
    greedy: Any = {"model": model, "temperature": 0, "max_tokens": 100, "tools": TOOLS}
    chat = client.chat.completions.create(messages=MESSAGES, tool_choice="required", **greedy)
    with client.chat.completions.stream(messages=MESSAGES, tool_choice=NAMED, **greedy) as stream:
        streamed = stream.until_done().get_final_completion().choices[0].message
    message = chat.choices[0].message
    (call,) = message.tool_calls or []
    result: Any = {"role": "tool", "tool_call_id": call.id, "content": RAIN}
    turns: Any = [*MESSAGES, message, result]
    ended = client.chat.completions.create(messages=turns, **greedy | {"max_tokens": 24})
    (streamed_call,) = streamed.tool_calls or []
    return {
        "finish_reason": chat.choices[0].finish_reason,
        "content": message.content,
        "call": call.model_dump(include={"function"}),
        "streamed": streamed_call.model_dump(include={"function"}),
        "ended": ended.choices[0].message.content,
        "ignored": (ended.model_extra or {})["graftwerk"]["ignored"],
        "prompt_tokens": [one.usage and one.usage.prompt_tokens for one in (chat, ended)],
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(*sys.argv[1:])))
