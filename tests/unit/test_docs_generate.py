"""The tables of docs/jobs/generate.md and compare.md agree with the templates, settings and fields in the code."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.kinds.compare import MAX_COMPARED_PROMPTS, CompareRequest, Variant
from services.kinds.generate import GenerateRequest
from services.kinds.shared import MAX_STREAMED_OUTPUTS, JobRequest
from services.models.lineage import TEMPLATE_OF_NAME
from services.models.prompt_file import JSON_LINES
from services.preflight.generate import PARSED_BYTES
from services.sampling import Sampling
from services.templates import TEMPLATES, Message, Segment, Text, render
from worker.inference.result_sink import SHOWN_PROMPTS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "jobs" / "generate.md").read_text(encoding="utf-8")
CELLS = re.compile(r"(?<!\\)\|")
ROLES = {"bos": "<s>", "eos": "</s>"}
CONVERSATION = [
    Message(role="user", content="{user}"),
    Message(role="assistant", content="{assistant}"),
    Message(role="user", content="{next}"),
]


def rows(heading: str) -> Iterator[list[str]]:
    """The cells of the table that begins with this heading."""
    lines = PAGE[PAGE.index(f"\n| {heading} |") + 1 :].splitlines()
    for line in lines[2:]:
        if not line.startswith("|"):
            return
        yield [cell.strip().replace("\\|", "|") for cell in CELLS.split(line)[1:-1]]


def rows_of_lineage() -> Iterator[list[str]]:
    """The indented table under the second rule."""
    for line in PAGE[PAGE.index("    | in the name") :].splitlines()[2:]:
        if not line.startswith("    |"):
            return
        yield [cell.strip() for cell in CELLS.split(line)[1:-1]]


def code(cell: str) -> str:
    """A cell's one piece of code, its newlines real."""
    found = re.fullmatch(r"`(.+)`", cell)
    return found[1].replace("\\n", "\n") if found else ""


def codes(cell: str) -> list[str]:
    """A cell's pieces of code."""
    return re.findall(r"`([^`]+)`", cell)


def flat(segments: list[Segment]) -> str:
    """A prompt as the page writes it."""
    texts = [part.text if isinstance(part, Text) else ROLES.get(part.piece, part.piece) for part in segments]
    return "".join(texts)


TEMPLATE_ROWS = {code(name): (code(one), code(two), codes(ends)) for name, one, two, ends in rows("template")}


def test_the_page_has_every_template_and_no_other() -> None:
    assert set(TEMPLATE_ROWS) == set(TEMPLATES)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_is_literally_what_the_page_says(name: str) -> None:
    one, two, ends = TEMPLATE_ROWS[name]
    assert flat(render(name, instruction="{user}")) == one
    assert {*TEMPLATES[name].stop, *TEMPLATES[name].stop_pieces} == set(ends)
    if name == "raw":
        assert two == ""
    else:
        assert flat(render(name, CONVERSATION)) == one + two


def test_the_sampling_settings_have_the_defaults_and_words_of_the_page() -> None:
    documented = {
        code(name): (json.loads(code(default)), text) for name, default, text in rows("`sampling.`")
    }
    defaults = Sampling()
    settings = {name: json.loads(json.dumps(getattr(defaults, name))) for name in Sampling.model_fields}
    descriptions = {name: field.description for name, field in Sampling.model_fields.items()}
    assert documented == {name: (settings[name], descriptions[name]) for name in settings}


def test_the_defaults_are_those_of_the_inference_script_of_2023() -> None:
    sentence = PAGE[PAGE.index("The defaults are those") : PAGE.index("Its web demo")]
    numbers = [
        float(number) for number in re.findall(r"\b\d+(?:\.\d+)?(?= new|[,.])", sentence.split(":", 1)[1])
    ]
    found = Sampling()
    assert numbers == [0.2, 40, 0.9, 1.1, 400]
    assert [
        found.temperature,
        found.top_k,
        found.top_p,
        found.repetition_penalty,
        found.max_new_tokens,
    ] == numbers
    assert (found.do_sample, found.num_beams, found.seed) == (True, 1, None)


def fields_of(page: str, before: str = "") -> list[str]:
    """Every name in the first column of the first `field` table after this text."""
    lines = page[page.index("\n| field | meaning |", page.index(before)) + 1 :].splitlines()
    names = []
    for line in lines[2:]:
        if not line.startswith("|"):
            break
        names += codes(CELLS.split(line)[1])
    return names


def test_the_page_has_every_field_of_a_request_and_no_other() -> None:
    names = set(GenerateRequest.model_fields) - set(JobRequest.model_fields) - {"kind"}
    found = fields_of(PAGE)
    assert set(found) == names
    assert len(found) == len(names)


def test_the_page_of_comparisons_has_every_field_of_a_request_and_no_other() -> None:
    page = (ROOT / "docs" / "jobs" / "compare.md").read_text(encoding="utf-8")
    found = fields_of(page)
    assert set(found) == set(CompareRequest.model_fields) - set(JobRequest.model_fields) - {"kind"}
    (variants,) = re.findall(r"2 to 8 of `\{(.+?)\}`", page)
    assert set(re.findall(r'"(\w+)"', variants)) == set(Variant.model_fields)
    assert f"up to {MAX_COMPARED_PROMPTS} texts" in page


def test_the_numbers_and_names_of_the_page_are_those_of_the_code() -> None:
    assert f"A job with at most {MAX_STREAMED_OUTPUTS} outputs sends its text" in PAGE
    assert f"those of the first {SHOWN_PROMPTS} prompts" in PAGE
    assert f"(up to {PARSED_BYTES // 2**20} MiB)" in PAGE
    names = [codes(cells[0]) for cells in rows("name")]
    assert [name.removeprefix("…") for name in names[0]] == list(JSON_LINES)


def test_the_names_that_tell_a_template_are_on_the_page() -> None:
    documented = [(codes(names), code(template)) for names, template in rows_of_lineage()]
    assert [template for _, template in documented] == [template for _, template in TEMPLATE_OF_NAME]
    for (names, _), (pattern, _) in zip(documented, TEMPLATE_OF_NAME, strict=True):
        assert all(re.search(pattern, name) for name in names)
