"""`litellm`: chat, stream, tools, schema, embeddings.

Arguments: address of the service, name of the model, name of a model that takes tools.
"""

import json
import sys
from typing import Any

import litellm
from asked import MESSAGES, TOOLS, Answer


def main(address: str, model: str, tool_model: str) -> dict[str, Any]:
    """Returns what was seen."""
    there: Any = {"model": f"openai/{model}", "api_base": f"{address}/v1", "api_key": "none"}
    greedy: Any = there | {"temperature": 0, "max_tokens": 24, "messages": MESSAGES}
    chunks = list(litellm.completion(**greedy, stream=True))
    parsed = litellm.completion(**greedy | {"max_tokens": 64}, response_format=Answer)
    demanded: Any = {
        "model": f"openai/{tool_model}",
        "tools": TOOLS,
        "tool_choice": "required",
        "max_tokens": 100,
    }
    called = litellm.completion(**greedy | demanded).choices[0].message.tool_calls[0].function
    pieces = [
        call.function
        for chunk in litellm.completion(**greedy | demanded, stream=True)
        for call in chunk.choices[0].delta.tool_calls or []
    ]
    vectors = litellm.embedding(**there, input=["What is an alpaca?", "A llama."])
    return {
        "chat": litellm.completion(**greedy).choices[0].message.content,
        "stream": "".join(chunk.choices[0].delta.content or "" for chunk in chunks),
        "offered": litellm.completion(**greedy, tools=TOOLS).choices[0].message.content,
        "parsed": json.loads(parsed.choices[0].message.content),
        "called": [called.name, called.arguments],
        "streamed_call": [pieces[0].name, "".join(piece.arguments or "" for piece in pieces)],
        "vectors": [item["embedding"] for item in vectors.data],
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(*sys.argv[1:])))
