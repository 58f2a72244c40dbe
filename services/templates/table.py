"""Table of prompt templates.

A template consists of segments, text or special token. A special token is an id of the vocabulary, so text that a user typed
(`</s>`, `<|eot_id|>`) can never become one. The wordings are those of Stanford Alpaca, of the inference and training scripts
of Chinese-LLaMA-Alpaca and its second version, of Meta's `llama` and `llama3` repositories, of FastChat's Vicuna v1.1 and
of OpenAI's ChatML.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from services.errors import UnknownTemplate
from services.templates.message import Role


@dataclass(frozen=True, slots=True)
class Text:
    """Plain text: nothing in it is ever read as a special token."""

    text: str


@dataclass(frozen=True, slots=True)
class Special:
    """A special token by its piece; `BOS` and `EOS` are those of the tokenizer in use.

    If the vocabulary lacks the piece, a `required` one is an error; any other is written as text.
    """

    piece: str
    required: bool = True


Segment = Text | Special

BOS = Special("bos")
EOS = Special("eos")


@dataclass(frozen=True, slots=True)
class Template:
    """One row of the table: the segments before, around and after each turn.

    `preamble` contains `{system}`; `user` and `assistant` are (before, after). `first_user` replaces the segments before
    the first user turn if there is a preamble; the model's output follows `cue`. `default_system` is used for
    conversations without a system text. `stop` are texts and `stop_pieces` special tokens with which such a model ends
    its turn or starts to write the user's. With `system_turns` the preamble is a turn that may come anywhere.
    """

    preamble: tuple[Segment | Literal["{system}"], ...] = ()
    user: tuple[tuple[Segment, ...], tuple[Segment, ...]] = ((), ())
    first_user: tuple[Segment, ...] | None = None
    assistant: tuple[tuple[Segment, ...], tuple[Segment, ...]] = ((), ())
    cue: tuple[Segment, ...] = ()
    default_system: str = ""
    strip: bool = False
    stop: tuple[str, ...] = ()
    stop_pieces: tuple[str, ...] = ()
    system_turns: bool = False


_LLAMA_3_HEADER = Special("<|start_header_id|>")
_LLAMA_3_HEADER_END = Special("<|end_header_id|>")
_EOT = Special("<|eot_id|>")
_IM_START = Special("<|im_start|>", required=False)
_IM_END = Special("<|im_end|>", required=False)


def _llama_3_header(role: Role) -> tuple[Segment, ...]:
    return (_LLAMA_3_HEADER, Text(role), _LLAMA_3_HEADER_END, Text("\n\n"))


_ALPACA = Template(
    preamble=("{system}", Text("\n\n")),
    user=((Text("### Instruction:\n\n"),), (Text("\n\n"),)),
    assistant=((Text("### Response:\n\n"),), (Text("\n\n"),)),
    cue=(Text("### Response:\n\n"),),
    default_system=(
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request."
    ),
    stop=("### Instruction:",),
)
# Trained with one newline after the first heading and a space after the second.
_ALPACA_TRAIN = replace(
    _ALPACA,
    user=((Text("### Instruction:\n"),), (Text("\n\n"),)),
    assistant=((Text("### Response: "),), (Text("\n\n"),)),
    cue=(Text("### Response: "),),
)
_LLAMA_2 = Template(
    preamble=(Text("[INST] <<SYS>>\n"), "{system}", Text("\n<</SYS>>\n\n")),
    first_user=(),
    user=((BOS, Text("[INST] ")), (Text(" [/INST]"),)),
    assistant=((Text(" "),), (EOS,)),
    default_system="You are a helpful assistant. 你是一个乐于助人的助手。",
    stop=("[INST]",),
)
_LLAMA_3 = Template(
    preamble=(*_llama_3_header("system"), "{system}", _EOT),
    user=(_llama_3_header("user"), (_EOT,)),
    assistant=(_llama_3_header("assistant"), (_EOT,)),
    cue=_llama_3_header("assistant"),
    strip=True,
    stop_pieces=("<|eot_id|>", "<|eom_id|>"),
    system_turns=True,
)
_VICUNA = Template(
    preamble=("{system}", Text(" ")),
    user=((Text("USER: "),), (Text(" "),)),
    assistant=((Text("ASSISTANT: "),), (EOS,)),
    cue=(Text("ASSISTANT:"),),
    default_system=(
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions."
    ),
    stop=("USER:",),
)
_CHATML = Template(
    preamble=(_IM_START, Text("system\n"), "{system}", _IM_END, Text("\n")),
    user=((_IM_START, Text("user\n")), (_IM_END, Text("\n"))),
    assistant=((_IM_START, Text("assistant\n")), (_IM_END, Text("\n"))),
    cue=(_IM_START, Text("assistant\n")),
    stop=("<|im_end|>", "<|im_start|>"),
    stop_pieces=("<|im_end|>",),
    system_turns=True,
)

TEMPLATES: Mapping[str, Template] = {
    "alpaca": _ALPACA,
    "alpaca-train": _ALPACA_TRAIN,
    "alpaca-chat": _ALPACA_TRAIN,
    "alpaca-2": _LLAMA_2,
    "llama-2": _LLAMA_2,
    "llama-3": _LLAMA_3,
    "vicuna": _VICUNA,
    "chatml": _CHATML,
    "raw": Template(),
}


def find_template(name: str) -> Template:
    """Returns the template of this name.

    Raises:
        UnknownTemplate: no template has this name; the message lists all names.
    """
    template = TEMPLATES.get(name)
    if template is None:
        raise UnknownTemplate(
            f"There is no prompt template {name!r}; there are {', '.join(TEMPLATES)}.",
            'Choose one of these, or "model" for the model\'s own chat template.',
        )
    return template
