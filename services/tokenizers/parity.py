"""Parity of a tokenizer.json with its tokenizer.model, counted on built-in lines of mixed text."""

from collections.abc import Sequence

import tokenizers

from services.kinds.made_model import TokenizerParity
from services.tokenizers.tokenizer import Tokenizer

LINES = 300

CHINESE = (
    "今天天气很好，我们去公园散步吧。", "人工智能正在改变人们的生活方式和工作方式。", "请用三句话介绍一下北京的历史。",
    "她把书放在桌子上，然后轻轻地关上了门。", "这家餐厅的红烧肉味道不错，价格也公道。", "春眠不觉晓，处处闻啼鸟。",
    "根据统计局公布的数据，去年国内生产总值增长了百分之五点二。", "如何在家里种植番茄和黄瓜？", "我不知道该怎么办才好。",
    "火车站离这里大约三公里，步行需要四十分钟。", "研究人员提出了一种新的训练方法，效果明显优于以往。", "祝你生日快乐！",
    "中华人民共和国成立于一九四九年十月一日。", "孩子们在操场上踢足球，笑声传遍了整个校园。", "昨晚下了一场大雪。",
    "机器翻译、语音识别和图像分类都属于深度学习的应用。", "老师说明天要考试，大家都在认真复习功课。", "多少钱一斤？",
    "繁體中文與簡體中文的詞彙並不完全相同。", "他从小就喜欢音乐，后来成为了一名小提琴演奏家。", "长江是亚洲最长的河流。",
    "为了保护环境，我们应该减少使用一次性塑料制品。", "请把下面这段话翻译成英文：", "会议推迟到下周三下午两点半举行。",
    "羊驼是一种原产于南美洲的动物，性情温顺。", "医生建议他多喝水、多休息，并按时服药。", "这个问题的答案是肯定的。",
    "公司第三季度的营业收入同比下降，净利润却有所上升。", "山重水复疑无路，柳暗花明又一村。", "你叫什么名字？",
)  # fmt: skip
ENGLISH = (
    "The river had risen overnight, and nobody dared to cross it.", "Please summarize the following paragraph.",
    "Merging weights doesn't change the vocabulary unless the embeddings grow.", "It's 7:45 already; we'll be late!",
    "Interoperability, internationalization and antidisestablishmentarianism are long words.", "Why is the sky blue?",
    "In 1998 the company sold 1,234,567 units for $89.99 each.", "  indented  text   with    runs of spaces",
    "A café in Zürich serves crème brûlée and jalapeño bread.", "see e.g. https://example.org/path?x=1&y=%20z#top",
    "HELLO world, CamelCase and snake_case_names.", "\"Quotes\" — dashes – and… ellipses", "a b c d e f g 1 2 3",
)  # fmt: skip
OTHER = (
    "def merge(base, delta):\n    return base + delta * 0.5", "for (int i = 0; i < n; ++i) { total += values[i]; }",
    '{"kind": "merge", "adapters": ["a", "b"], "scale": 1e-4}', "SELECT name, COUNT(*) FROM jobs GROUP BY name;",
    "if err != nil {\n\treturn err\n}", "<p class=\"note\">5 &lt; 6 &amp; 7 &gt; 2</p>", "$ tar -xzf model.tar.gz && ls -la",
    "😀👍🏽🦙", "👩‍👩‍👧‍👦 🇨🇳 ❤️", "x² + y² = z², ∑ᵢ aᵢ ≤ ∞", "Привет, мир! Γειά σου Κόσμε", "こんにちは、世界。안녕하세요",
    "مرحبا بالعالم", "𠀀𠮷 龘靐", "\t\ttabs\r\nand lines\n\n", "①②③ ½ Ⅳ ﬁ", "1+1=2，3×4＝12。",
)  # fmt: skip


def mixed_lines() -> list[str]:
    """Returns the lines, the same on every call: single ones first, then joined in changing pairs and triples."""
    texts = [*CHINESE, *ENGLISH, *OTHER]
    lines = list(texts)
    for number in range(LINES - len(texts)):
        others = (CHINESE, ENGLISH, OTHER)[number % 3]
        joint = ("", " ", "\n")[number // 3 % 3]
        middle = others[(number * 7 + number // 30) % len(others)]
        last = CHINESE[(number * 11 + number // 30 + 5) % len(CHINESE)]
        lines.append(joint.join((CHINESE[number % len(CHINESE)], middle, last)))
    return lines


def measure_parity(
    tokenizer: Tokenizer, table: tokenizers.Tokenizer, lines: Sequence[str] | None = None
) -> TokenizerParity:
    """Counts the lines that the table encodes unlike the tokenizer, both as plain text. Takes about 0.1 s."""
    lines = mixed_lines() if lines is None else lines
    before, table.encode_special_tokens = table.encode_special_tokens, True
    found = table.encode_batch(list(lines), add_special_tokens=False)
    table.encode_special_tokens = before
    pairs = zip(lines, found, strict=True)
    different = sum(tokenizer.encode(line, add_bos=False) != encoded.ids for line, encoded in pairs)
    return TokenizerParity(lines=len(lines), different=different)
