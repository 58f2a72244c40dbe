"""SmolLM2 with a chat template that takes tools: a short version of that of Qwen 2.5, which is ChatML as SmolLM2's own."""

import json
import shutil
from pathlib import Path

TEMPLATE = (
    "{%- set system = messages[0].content if messages[0].role == 'system' else 'You are a helpful assistant.' %}"
    "<|im_start|>system\n{{ system }}"
    "{%- if tools %}\n\n# Tools\n\nYou may call functions to answer. They are described within <tools></tools>:\n<tools>"
    "{%- for tool in tools %}\n{{ tool | tojson }}{% endfor %}\n</tools>\n\n"
    "A call is a JSON object with name and arguments within <tool_call></tool_call>:\n<tool_call>\n"
    '{"name": "the function", "arguments": {"the parameter": "its value"}}\n</tool_call>{% endif %}<|im_end|>\n'
    "{%- for m in messages %}{% if m.role == 'tool' %}<|im_start|>user\n<tool_response>\n{{ m.content }}\n</tool_response><|im_end|>\n"
    "{%- elif m.role != 'system' %}<|im_start|>{{ m.role }}\n{{ m.content or '' }}"
    "{%- for call in m.tool_calls or [] %}\n<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n</tool_call>{% endfor %}<|im_end|>\n'
    "{%- endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_tool_model(source: Path, target: Path) -> None:
    """Copies a model to a folder on the volume and gives the copy the template."""
    staged = target.with_name(f".{target.name}")
    shutil.copytree(source, staged, ignore=shutil.ignore_patterns("manifest.json", "README.md", "*.jinja"))
    config = staged / "tokenizer_config.json"
    settings = json.loads(config.read_text(encoding="utf-8"))
    settings.pop("chat_template", None)
    config.write_text(json.dumps(settings), encoding="utf-8")
    (staged / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    staged.rename(target)
