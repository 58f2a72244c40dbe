"""Script of vLLM's environment: reads a request from stdin as JSON, generates greedily, writes the outputs to the file named by its argument.

The request is `{"model": folder, "prompts": [text]}` or `{"model": folder, "chats": [[message]]}`, with `max_tokens` and `ignore_eos`.
"""

import json
import sys
from pathlib import Path

from vllm import LLM, SamplingParams


def main() -> None:
    request = json.load(sys.stdin)
    llm = LLM(
        model=request["model"], dtype="float32", enforce_eager=True, max_model_len=256, max_num_seqs=4, seed=0,
        enable_prefix_caching=False,
    )  # fmt: skip
    sampling = SamplingParams(
        temperature=0, max_tokens=request["max_tokens"], ignore_eos=request["ignore_eos"]
    )
    if "chats" in request:
        outputs = llm.chat(request["chats"], sampling)
    else:
        outputs = llm.generate(request["prompts"], sampling)
    found = [
        {
            "prompt_token_ids": list(output.prompt_token_ids),
            "token_ids": list(output.outputs[0].token_ids),
            "text": output.outputs[0].text,
        }
        for output in outputs
    ]
    Path(sys.argv[1]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
