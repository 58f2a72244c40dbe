"""`langchain-openai`: chat, stream, tools, schema, embeddings. Arguments: address of the service, name of the model."""

import json
import sys
from typing import Any

from asked import MESSAGES, TOOLS, Answer
from langchain_openai import ChatOpenAI, OpenAIEmbeddings


def main(address: str, model: str) -> dict[str, Any]:
    """Returns what was seen."""
    there: Any = {"model": model, "base_url": f"{address}/v1", "api_key": "none"}
    chat = ChatOpenAI(**there, temperature=0, max_tokens=24)
    shaped = ChatOpenAI(**there, temperature=0, max_tokens=64).with_structured_output(
        Answer, method="json_schema"
    )
    vectors = OpenAIEmbeddings(**there, check_embedding_ctx_length=False, dimensions=64)
    answer: Any = shaped.invoke(MESSAGES)
    return {
        "chat": chat.invoke(MESSAGES).content,
        "stream": "".join(str(chunk.content) for chunk in chat.stream(MESSAGES)),
        "offered": chat.bind_tools(TOOLS).invoke(MESSAGES).content,
        "parsed": answer.model_dump(),
        "vectors": vectors.embed_documents(["What is an alpaca?", "A llama."]),
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(*sys.argv[1:])))
