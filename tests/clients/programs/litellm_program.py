"""`litellm`: chat, stream, tools, schema, embeddings. Arguments: address of the service, name of the model."""

import json
import sys
from typing import Any

import litellm
from asked import MESSAGES, TOOLS, Answer


def main(address: str, model: str) -> dict[str, Any]:
    """Returns what was seen."""
    there: Any = {"model": f"openai/{model}", "api_base": f"{address}/v1", "api_key": "none"}
    greedy: Any = there | {"temperature": 0, "max_tokens": 24, "messages": MESSAGES}
    chunks = list(litellm.completion(**greedy, stream=True))
    parsed = litellm.completion(**greedy | {"max_tokens": 64}, response_format=Answer)
    vectors = litellm.embedding(**there, input=["What is an alpaca?", "A llama."])
    return {
        "chat": litellm.completion(**greedy).choices[0].message.content,
        "stream": "".join(chunk.choices[0].delta.content or "" for chunk in chunks),
        "offered": litellm.completion(**greedy, tools=TOOLS).choices[0].message.content,
        "parsed": json.loads(parsed.choices[0].message.content),
        "vectors": [item["embedding"] for item in vectors.data],
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(*sys.argv[1:])))
