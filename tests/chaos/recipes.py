"""Requests of the load: one table. Jobs of the same recipe must have the same result, with or without faults."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Json = dict[str, Any]

MINIATURE = Path(__file__).parents[2] / "examples" / "miniature"
GREEDY = {"temperature": 0, "max_new_tokens": 48}
QUESTION, ANSWER = (
    json.loads((MINIATURE / "questions.json").read_text(encoding="utf-8"))[0][part]
    for part in ("question", "answer")
)
ADAPTERS = ["zh", "alpaca"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One request without its target; `share` is its weight in the load, 0 for those that only follow another.

    Attributes:
        follows: recipe of an earlier job whose model this one reads, under the key `reads`.
        uploads: files of the miniature that are uploaded first.
        engine: engine that answers it, with the default setting of the engine.
        is_formed: the output follows a form, which the stand-in for vLLM does not write.
        is_repeatable: the output is the same in any crowd.
        setting: setting of the engine with which alone it is asked, None for all.
    """

    request: Json
    share: int
    makes: bool = False
    is_slow: bool = False
    follows: str | None = None
    reads: str = "model"
    uploads: tuple[str, ...] = ()
    engine: str = "graftwerk"
    is_formed: bool = False
    is_repeatable: bool = True
    setting: str | None = None
    queue: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "queue", QUEUE_OF_KIND[self.request["kind"]])

    @property
    def writes_text(self) -> bool:
        """True if the engine of the setting writes its outputs."""
        return self.request["kind"] in ("generate", "compare")

    @property
    def model(self) -> str:
        """Model that it reads, that of the first variant of a comparison."""
        first: Json = self.request.get("variants", [self.request])[0]
        return str(first.get("model", ""))


QUEUE_OF_KIND = {
    "import": "convert", "convert": "convert", "merge": "merge", "verify": "merge", "combine": "merge",
    "generate": "generate", "compare": "generate", "embed": "generate", "perplexity": "generate",
    "tokenize": "generate",
}  # fmt: skip


def _generate(model: str, prompt: str, **more: object) -> Json:
    return {"kind": "generate", "model": model, "prompt": prompt, "return_token_ids": True, **more}


_LONG = {"temperature": 0, "max_new_tokens": 120, "min_new_tokens": 120}
_NO_END = {"temperature": 0, "repetition_penalty": 1, "max_new_tokens": 300, "logit_bias": {"2": -100}}
_SEEDED = {"temperature": 0.9, "seed": 7, "max_new_tokens": 32}
_MERGE = {"kind": "merge", "base": "llama-hf", "adapters": ADAPTERS, "force": True}
_SLOW = {"kind": "merge", "base": "slow", "adapters": ["slow-adapter"], "force": True}
_RECORD = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Bern", "北京"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
_FORM = {"type": "json_schema", "json_schema": {"name": "record", "schema": _RECORD}}
_CALL = {
    "tools": [{"type": "function", "function": {"name": "weather", "parameters": _RECORD}}],
    "tool_choice": "required",
    "sampling": {"temperature": 0, "max_new_tokens": 200},
}
_SLOW_CONVERSION = {"kind": "convert", "source": "slow", "output_format": "meta", "force": True}

RECIPES: Mapping[str, Recipe] = {
    "import a folder": Recipe(
        request={"kind": "import", "source": {"path": "incoming/llama"}}, share=4, makes=True
    ),
    "import an archive": Recipe(
        request={"kind": "import", "source": {"zip": "incoming/zh.zip"}}, share=4, makes=True
    ),
    "import uploads": Recipe(
        request={"kind": "import", "source": {"upload": []}},
        share=3,
        makes=True,
        uploads=("chinese-alpaca-lora.zip",),
    ),
    "convert": Recipe(request={"kind": "convert", "source": "llama", "force": True}, share=6, makes=True),
    "convert a larger model": Recipe(request=_SLOW_CONVERSION, share=2, makes=True, is_slow=True),
    "convert to GGUF": Recipe(
        request={
            "kind": "convert",
            "source": "llama-hf",
            "output_format": "gguf",
            "dtype": "q8_0",
            "force": True,
        },
        share=4,
        makes=True,
    ),
    "merge": Recipe(request=_MERGE, share=6, makes=True),
    "merge a larger model": Recipe(request=_SLOW, share=5, makes=True, is_slow=True),
    "verify": Recipe(
        request={"kind": "verify", "model": "merged", "base": "llama-hf", "adapters": ADAPTERS}, share=3
    ),
    "generate": Recipe(request=_generate("merged", QUESTION, template="alpaca", sampling=GREEDY), share=12),
    "generate with adapters": Recipe(
        request=_generate("llama-hf", QUESTION, template="alpaca", sampling=GREEDY, adapters=ADAPTERS),
        share=5,
    ),
    "generate by a seed": Recipe(request=_generate("merged", QUESTION, sampling=_SEEDED), share=5),
    "generate a long text": Recipe(
        request=_generate("slow", QUESTION, sampling=_LONG), share=8, is_slow=True
    ),
    "generate with one adapter": Recipe(
        request=_generate("llama-hf", QUESTION, template="alpaca", sampling=GREEDY, adapters=["zh"]), share=4
    ),
    "generate with a scaled adapter": Recipe(
        request=_generate("llama-hf", QUESTION, sampling=GREEDY, adapters=[{"name": "zh", "scale": 0.5}]),
        share=4,
    ),
    "generate a long text with an adapter": Recipe(
        request=_generate("slow", QUESTION, sampling=_LONG, adapters=["slow-adapter"]), share=4, is_slow=True
    ),
    "generate a record": Recipe(
        request=_generate("merged", QUESTION, response_format=_FORM, sampling=_CALL["sampling"]),
        share=4,
        is_formed=True,
    ),
    "call a tool": Recipe(
        request={
            "kind": "generate",
            "model": "tool-model",
            "messages": [{"role": "user", "content": QUESTION}],
            **_CALL,
        },
        share=4,
        is_formed=True,
    ),
    "generate by a GGUF model": Recipe(
        request=_generate("merged-gguf", QUESTION, template="alpaca", sampling=GREEDY),
        share=6,
        engine="llama.cpp",
    ),
    "generate a long text by a GGUF model": Recipe(
        request=_generate("slow-gguf", QUESTION, sampling=_NO_END),
        share=4,
        is_slow=True,
        engine="llama.cpp",
        is_repeatable=False,
    ),
    "compare": Recipe(
        request={
            "kind": "compare",
            "variants": [{"model": "llama-hf"}, {"model": "merged"}],
            "prompt": QUESTION,
            "sampling": {"temperature": 0, "max_new_tokens": 24, "seed": 1},
        },
        share=4,
    ),
    "embed": Recipe(
        request={"kind": "embed", "model": "merged", "inputs": [QUESTION, "中国的首都是北京。"]}, share=4
    ),
    "perplexity": Recipe(request={"kind": "perplexity", "model": "merged", "text": ANSWER * 20}, share=4),
    "tokenize": Recipe(
        request={"kind": "tokenize", "model": "llama-hf", "adapters": ADAPTERS, "texts": [QUESTION, ANSWER]},
        share=3,
    ),
    "generate a long text by a merged copy": Recipe(
        request=_generate(
            "slow", QUESTION, sampling=_LONG, adapters=[{"name": "slow-adapter", "scale": 0.5}]
        ),
        share=4,
        is_slow=True,
        setting="vllm-cpu",
    ),
    "compare larger models": Recipe(
        request={
            "kind": "compare",
            "variants": [{"model": "slow"}, {"model": "slow", "adapters": ["slow-adapter"]}],
            "prompt": QUESTION,
            "sampling": {"temperature": 0, "max_new_tokens": 24, "seed": 1},
        },
        share=4,
        setting="vllm-cpu",
    ),
    "verify a merge": Recipe(
        request={"kind": "verify", "model": "", "base": "llama-hf", "adapters": ADAPTERS},
        share=0,
        follows="merge",
    ),
    "generate by a merge": Recipe(
        request=_generate("", QUESTION, template="alpaca", sampling=GREEDY), share=0, follows="merge"
    ),
    "convert a merge": Recipe(
        request={"kind": "convert", "source": "", "output_format": "gguf", "force": True},
        share=0,
        makes=True,
        follows="merge",
        reads="source",
    ),
}

SLOW_RECIPES = {
    "convert": "convert a larger model",
    "merge": "merge a larger model",
    "generate": "generate a long text",
}
"""By queue, the recipe of the job that runs when a fault hits."""

_WITH_AND_WITHOUT_ADAPTER = (
    *["generate a long text"] * 4,
    *["generate a long text with an adapter"] * 3,
)
CROWDS = {
    ("auto", "generate"): (
        *["generate a long text"] * 2,
        *["generate a long text with an adapter"] * 2,
        *["generate a long text by a GGUF model"] * 3,
    ),
    ("auto", "engine"): ("generate a long text by a GGUF model",) * 7,
    ("llama.cpp", "generate"): ("generate a long text by a GGUF model",) * 7,
    ("llama.cpp", "engine"): ("generate a long text by a GGUF model",) * 7,
    **{(vllm, "generate"): _WITH_AND_WITHOUT_ADAPTER for vllm in ("vllm", "vllm-cpu")},
    **{(vllm, "engine"): ("generate a long text",) * 7 for vllm in ("vllm", "vllm-cpu")},
}
"""By the engine's setting and the role that is killed, the recipes of the seven jobs that run then."""

PROCESS_ENGINES = {
    "auto": "llama.cpp",
    "llama.cpp": "llama.cpp",
    "vllm": "graftwerk",
    "vllm-cpu": "graftwerk",
}
"""By the engine's setting, the `engine` of the recipes that a process below the generate worker answers."""


ANSWERED = {
    "auto": lambda _: True,
    "llama.cpp": lambda _: True,
    "vllm": lambda recipe: recipe.engine == "graftwerk" and not recipe.is_formed,
    "vllm-cpu": lambda recipe: not recipe.writes_text or recipe.model == "slow",
}
"""By the engine's setting, the recipes that a service answers. vLLM's attention on CPUs has no heads of the miniature's size."""


DIALOGUE_MODELS = {"vllm-cpu": "slow"}
"""By the engine's setting, the model that is asked through `/v1/responses`, if it is not the merged miniature."""


def offered(engine: str) -> list[str]:
    """Returns the recipes that a service with this setting of the engine answers."""
    return [
        name
        for name, recipe in RECIPES.items()
        if recipe.setting in (None, engine) and ANSWERED[engine](recipe)
    ]


def roles_of(name: str, engine: str) -> set[str]:
    """Returns the roles of the processes that a job runs in."""
    recipe = RECIPES[name]
    is_served = recipe.request["kind"] == "generate" and recipe.engine == PROCESS_ENGINES[engine]
    return {recipe.queue, "engine"} if is_served else {recipe.queue}
