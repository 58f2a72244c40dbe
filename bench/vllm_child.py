"""Script of vLLM's environment: loads a model in float32, then generates greedily for each line of its input.

The argument is `{"model": folder, "eager": bool, "slots": int}`. A line is `{"prompts": [[token id]], "new_tokens": int}`; the answer is
`{"tokens": [[token id]], "seconds": float}`. `{}` is written once the model is loaded.
"""

import json
import sys
import time

from vllm import LLM, SamplingParams


def main() -> None:
    options = json.loads(sys.argv[1])
    llm = LLM(
        model=options["model"], dtype="float32", enforce_eager=options["eager"], max_num_seqs=options["slots"], max_model_len=1024, seed=0,
        enable_prefix_caching=False, kv_cache_memory_bytes=2**30,
    )  # fmt: skip
    print("{}", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        sampling = SamplingParams(temperature=0, max_tokens=request["new_tokens"], ignore_eos=True)
        start = time.perf_counter()
        outputs = llm.generate(
            [{"prompt_token_ids": ids} for ids in request["prompts"]], sampling, use_tqdm=False
        )
        seconds = time.perf_counter() - start
        print(
            json.dumps(
                {"tokens": [list(output.outputs[0].token_ids) for output in outputs], "seconds": seconds}
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
