"""Tasks for lm-eval from the sentences of this project's documentation: multiple choice, and documents scored as a whole."""

import json
import random
import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
CHOICES = 4

MULTIPLE_CHOICE = """\
task: graftwerk_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list: [{{metric: acc}}]
"""

ROLLING = """\
task: graftwerk_rolling
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: word_perplexity}}]
"""


def write_tasks(folder: Path, *, choices: int, documents: int) -> None:
    """Writes the task files and their data: this many questions and documents, the same each time."""
    sentences = _sentences()
    rng = random.Random(13)
    asked = rng.sample(range(len(sentences)), choices)
    questions = [_question(sentences, number, rng) for number in asked]
    starts = rng.sample(range(len(sentences) - 5), documents)
    texts = [{"text": " ".join(sentences[start : start + 5])} for start in starts]
    for name, task, rows in (("choice", MULTIPLE_CHOICE, questions), ("rolling", ROLLING, texts)):
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        (folder / f"{name}.yaml").write_text(task.format(data=data), encoding="utf-8")


def _question(sentences: list[str], number: int, rng: random.Random) -> dict[str, object]:
    """Returns the first half of a sentence, and its second half among those of others."""
    words = sentences[number].split()
    half = len(words) // 2
    others = rng.sample([other for other in range(len(sentences)) if other != number], CHOICES - 1)
    ends = [" ".join(sentences[other].split()[-half:]) for other in others]
    answer = rng.randrange(CHOICES)
    ends.insert(answer, " ".join(words[half:]))
    return {"question": " ".join(words[:half]), "choices": ends, "answer": answer}


def _sentences() -> list[str]:
    """Returns the sentences of the English pages, of 8 to 40 words."""
    found: list[str] = []
    for page in sorted(DOCS.glob("*.md")):
        prose = re.sub(r"```.*?```|^[|#<].*?$", " ", page.read_text("utf-8"), flags=re.S | re.M)
        found += re.split(r"(?<=[.!?])\s+", " ".join(prose.split()))
    return [sentence for sentence in dict.fromkeys(found) if 8 <= len(sentence.split()) <= 40]
