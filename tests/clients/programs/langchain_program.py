"""`langchain-openai`: chat, stream, tools, schema, embeddings.

Arguments: address of the service, name of the model, name of a model that takes tools.
"""

import json
import sys
from typing import Any

from asked import MESSAGES, RAIN, TOOLS, Answer
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI, OpenAIEmbeddings


def main(address: str, model: str, tool_model: str) -> dict[str, Any]:
    """Returns what was seen."""
    there: Any = {"model": model, "base_url": f"{address}/v1", "api_key": "none"}
    chat = ChatOpenAI(**there, temperature=0, max_tokens=24)
    longer = ChatOpenAI(**there, temperature=0, max_tokens=64)
    caller = ChatOpenAI(**there | {"model": tool_model}, temperature=0, max_tokens=100)
    shorter = ChatOpenAI(**there | {"model": tool_model}, temperature=0, max_tokens=24)
    shaped = longer.with_structured_output(Answer, method="json_schema")
    as_call = caller.with_structured_output(Answer, method="function_calling")
    as_object = longer.with_structured_output(None, method="json_mode")
    question = MESSAGES[0]["content"]
    called: Any = caller.bind_tools(TOOLS, tool_choice="required").invoke(MESSAGES)
    result = ToolMessage(RAIN, tool_call_id=called.tool_calls[0]["id"])
    vectors = OpenAIEmbeddings(**there, check_embedding_ctx_length=False, dimensions=64)
    by_call: Any = as_call.invoke(MESSAGES)
    answer: Any = shaped.invoke(MESSAGES)
    return {
        "chat": chat.invoke(MESSAGES).content,
        "stream": "".join(str(chunk.content) for chunk in chat.stream(MESSAGES)),
        "offered": chat.bind_tools(TOOLS).invoke(MESSAGES).content,
        "parsed": answer.model_dump(),
        "called": [called.tool_calls[0]["name"], json.dumps(called.tool_calls[0]["args"])],
        "ended": shorter.bind_tools(TOOLS).invoke([HumanMessage(question), called, result]).content,
        "parsed_call": by_call.model_dump(),
        "parsed_object": as_object.invoke(f"{question} Reply with a JSON object."),
        "vectors": vectors.embed_documents(["What is an alpaca?", "A llama."]),
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(*sys.argv[1:])))
