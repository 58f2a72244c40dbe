"""Mixed text for tokenizer tests: Chinese, English, code, emoji and odd spaces, the same on every run."""

import random

_ENGLISH_TEXT = (
    "the model reads a sentence and writes another tokenizer embeddings Internationalization don't we'll I'd "
    "quickly brown fox jumps over 3.14159 1,000,000 2024-05-17 e.g. naïve café résumé Größe façade piñata"
)
_CHINESE_TEXT = (
    "请用中文写一首关于春天的诗。 人工智能正在改变世界， 你好，世界！ 我爱北京天安门 羊驼大模型 "
    "机器学习与自然语言处理 《红楼梦》是一部古典小说； 今天天气怎么样？ 繁體字也要測試 龘靐齉爩 "
    "三点一四一五九 第１２３章 计算机科学与技术 合并权重之后， 词表扩充到四万九千九百五十三"
)
_ENGLISH = _ENGLISH_TEXT.split()
_CHINESE = _CHINESE_TEXT.split()
_CODE = (
    "def merge(base, lora):",
    "    return base + (lora.B @ lora.A) * scale",
    "for (int i = 0; i < n; ++i) { sum += a[i]; }",
    '{"kind": "merge", "adapters": ["a", "b"], "n": null}',
    "SELECT * FROM jobs WHERE status != 'done';",
    "\tif err != nil {\treturn err\t}",
    "<div class='x'>&nbsp;</div>",
    "x = y if z else w  # comment",
    "http://127.0.0.1:8000/api/jobs?dry_run=true",
)
_EMOJI = ("😀", "🏳️‍🌈", "👩‍👩‍👧‍👦", "🇨🇳", "👍🏽", "❤️", "🦙🦙", "①②③", "♠♥")
_ODD = (
    "  ",
    " ",
    "\t",
    "\u3000",
    "\u00a0",
    "\u200b",
    "\ufeff",
    "\u2028",
    "\r\n",
    "\n\n",
    "e\u0301",
    "ﬁ",
    "Ⅳ",
    "½",
    "▁",
    "▁▁x",
    "\x00",
    "\x7f",
    "\ufffd",
)
_LOOKALIKES = (
    *("<s>", "</s>", "<unk>", "[PAD]", "<0x0A>", "[INST]", "<<SYS>>", "### Response:"),
    *("<|eot_id|>", "<|begin_of_text|>", "<|im_end|>"),
)
_OTHERS = (
    "Привет, мир",
    "こんにちは世界",
    "안녕하세요",
    "مرحبا بالعالم",
    "שלום",
    "नमस्ते",
    "สวัสดี",
    "ελληνικά",
    "𝒳𝓎𝔃",
    "𠀀𠮷",
)


def mixed_lines(count: int = 1200) -> list[str]:
    """`count` lines, among them empty ones and ones that begin or end with spaces."""
    random_ = random.Random(20230414)
    kinds = (_ENGLISH, _ENGLISH, _CHINESE, _CHINESE, _CODE, _EMOJI, _ODD, _LOOKALIKES, _OTHERS)
    lines = ["", " ", "  ", "\n", "\t\t", *_CODE, *_ODD, *_LOOKALIKES, *_EMOJI, *_OTHERS, *_CHINESE]
    while len(lines) < count:
        parts = [random_.choice(random_.choice(kinds)) for _ in range(random_.randrange(1, 14))]
        joint = random_.choice(("", " ", " ", "  "))
        lines.append(random_.choice(("", "", " ")) + joint.join(parts) + random_.choice(("", "", " ", "\n")))
    return lines[:count]
