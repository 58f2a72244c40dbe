"""Facts about Llama 3 that its files do not contain: names of special tokens, and the chat template.

Its `tokenizer.model` holds ranks alone. The names are those of `llama/tokenizer.py` in Meta's `llama3` repository and of
`api/tokenizer.py` of Llama 3.1 in `llama-models`, the latter as its published Hugging Face models have them.
"""

from collections.abc import Iterable


def _reserved(numbers: Iterable[int]) -> tuple[str, ...]:
    return tuple(f"<|reserved_special_token_{number}|>" for number in numbers)


LLAMA_3_SPECIAL_TOKENS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    *_reserved(range(4)),
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|reserved_special_token_4|>",
    "<|eot_id|>",
    *_reserved(range(5, 251)),
)
LLAMA_3_1_SPECIAL_TOKENS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    *_reserved(range(2)),
    "<|finetune_right_pad_id|>",
    "<|reserved_special_token_2|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
    *_reserved(range(3, 248)),
)

LLAMA_3_END_OF_TURN = "<|eot_id|>"

LLAMA_3_CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}"
    "{{ message['content'] | trim }}{{ '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
"""Turns as Meta's ChatFormat writes them (meta-llama/llama3 `tokenizer.py`, encode_dialog_prompt)."""
