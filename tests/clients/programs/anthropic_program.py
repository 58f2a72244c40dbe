"""Official `anthropic` client: chat, stream, tools, begun turns. Arguments: address of the service, name of the model."""

import json
import sys
from typing import Any

from anthropic import Anthropic
from asked import MESSAGES, TOOLS


def main(address: str, model: str) -> dict[str, Any]:
    """Returns what was seen."""
    client = Anthropic(base_url=address, api_key="none", timeout=300)
    greedy: Any = {"model": model, "messages": MESSAGES, "max_tokens": 24, "extra_body": {"temperature": 0}}
    chat = client.messages.create(**greedy)
    function = TOOLS[0]["function"]
    tool: Any = {
        "name": function["name"], "description": function["description"], "input_schema": function["parameters"],
    }  # fmt: skip
    with client.messages.stream(**greedy) as stream:
        streamed = "".join(stream.text_stream)
        last = stream.get_final_message()
    offered = client.messages.create(**greedy, tools=[tool])
    begun: Any = [*MESSAGES, {"role": "assistant", "content": "The capital of France is"}]
    continued = client.messages.create(**greedy | {"messages": begun})
    return {
        "chat": _text(chat),
        "usage": [chat.usage.input_tokens, chat.usage.output_tokens],
        "stop_reason": chat.stop_reason,
        "stream": streamed,
        "stream_usage": [last.usage.input_tokens, last.usage.output_tokens],
        "offered": _text(offered),
        "continued": _text(continued),
        "counted": client.messages.count_tokens(model=model, messages=MESSAGES).input_tokens,
    }


def _text(message: Any) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(*sys.argv[1:])))
