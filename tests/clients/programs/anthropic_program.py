"""Official `anthropic` client: chat, stream, tools, begun turns.

Arguments: address of the service, name of the model, name of a model that takes tools.
"""

import json
import sys
from typing import Any

from anthropic import Anthropic
from asked import MESSAGES, RAIN, TOOLS


def main(address: str, model: str, tool_model: str) -> dict[str, Any]:
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
    demanded = greedy | {
        "model": tool_model, "max_tokens": 100, "tools": [tool], "tool_choice": {"type": "any"},
    }  # fmt: skip
    called = client.messages.create(**demanded)
    (use,) = [block for block in called.content if block.type == "tool_use"]
    with client.messages.stream(**demanded) as stream:
        (streamed_use,) = [block for block in stream.get_final_message().content if block.type == "tool_use"]
    result: Any = {"type": "tool_result", "tool_use_id": use.id, "content": RAIN}
    turns: Any = [
        *MESSAGES,
        {"role": "assistant", "content": called.content},
        {"role": "user", "content": [result]},
    ]
    ended = client.messages.create(**greedy | {"model": tool_model, "messages": turns, "tools": [tool]})
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
        "called": [use.name, json.dumps(use.input)],
        "streamed_call": [streamed_use.name, json.dumps(streamed_use.input)],
        "call_stop_reason": called.stop_reason,
        "ended": _text(ended),
        "counted": client.messages.count_tokens(model=model, messages=MESSAGES).input_tokens,
    }


def _text(message: Any) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(*sys.argv[1:])))
