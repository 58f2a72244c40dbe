"""The service's sentences on Chinese pages: recognized by their words, with their values, or marked as English."""

import ast
import re
import sys
import time
from pathlib import Path

import pytest
from flask.testing import FlaskClient
from werkzeug.exceptions import default_exceptions

from api.errors import HTTP_CODES, STATUS_OF
from api.pages.progress_names import STAGES, UNITS
from api.pages.sentences import TITLES, Pattern, sentence, translated
from tests.api_client import client_of

pytestmark = pytest.mark.disable_socket

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "deploy"))
STAGE_ARGUMENTS = {"Progress": 0, "_advance": 0, "_Account": 1}
"""Position of the stage among the arguments of what sets it."""

CHINESE = re.compile(r"[\u4e00-\u9fff]")


@pytest.fixture
def client(tmp_path: Path) -> FlaskClient:
    client = client_of(tmp_path / "models")
    client.set_cookie("language", "zh")
    return client


def said(text: str) -> str | None:
    return translated(text, "zh")


# ---- nothing is without Chinese -----------------------------------------------------------------------


def test_every_error_has_a_chinese_title() -> None:
    assert set(TITLES) == {error.code for error in STATUS_OF}
    assert [code for code, title in TITLES.items() if not CHINESE.search(said(title) or "")] == []
    names = [default_exceptions[status]().name for status in HTTP_CODES]
    assert [name for name in names if not CHINESE.search(said(name) or "")] == []


def progress_values() -> tuple[set[str], set[str]]:
    """Returns the stages and units in the source: of `Progress`, and where a stage is set or handed on."""
    stages: set[object] = set()
    units: set[object] = set()
    for path in [*(ROOT / "services").rglob("*.py"), *(ROOT / "worker").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call):
                name = (
                    node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                )
                texts = dict(enumerate(a.value if isinstance(a, ast.Constant) else None for a in node.args))
                if name == "Progress":
                    units.add(texts.get(3, "bytes"))
                if name in STAGE_ARGUMENTS:
                    stages.add(texts.get(STAGE_ARGUMENTS[name]))
            elif isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") in ("stage", "starting"):
                stages.add(node.value.value if isinstance(node.value, ast.Constant) else None)
    return {s for s in stages if isinstance(s, str)}, {u for u in units if isinstance(u, str)}


def test_every_stage_and_unit_of_the_source_has_a_name() -> None:
    stages, units = progress_values()
    assert {
        "writing tensors",
        "generating",
        "downloading",
        "starting vLLM",
        "embedding",
        "uploading",
    } <= stages
    assert stages - {""} <= set(STAGES)
    assert units - {"bytes"} <= set(UNITS)


def test_sentences_are_taken_from_the_source() -> None:
    import sentences

    source = '''
def order_warnings(names):
    """No sentence of its own."""
    logger.warning("This goes to a log alone.")
    return [f"{names[0]} comes before {names[1]!r}"]

def refuse(error):
    raise InvalidName(f"The order {error.order} is wrong: {error.message}", "Choose another order.")

EXAMPLES = ("This is a sample text.",)
'''
    found = {found.text: found.values for found in sentences.sentences_of(source)}
    assert found == {
        "{1} comes before {2}": ("names[0]", "names[1]"),
        "The order {1} is wrong: {2}": ("error.order", "error.message"),
        "Choose another order.": (),
    }


# ---- recognizing --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("english", "chinese"),
    [
        (
            "The adapters do not fit in the order b, a: Adapter a has embeddings of 1104 rows; before it there are 1105, so "
            "the vocabulary would shrink.",
            "适配器不能按 b, a 的顺序合并：适配器 a 的嵌入有 1104 行；在它之前已有 1105 行，词表会因此缩小。",
        ),
        ("A model named 'x' exists already (ignoring case).", "已有名为 'x' 的模型（不区分大小写）。"),
        (
            "Adapter x has no adapter_config.json. Add it: it holds the rank and scale that the merge needs.",
            "适配器 x 没有 adapter_config.json。请补上它：其中有合并所需的秩和系数。",
        ),
        (
            "target: target 'a' is one of the inputs: a model never overwrites its input.",
            "target：目标 'a' 是输入之一：模型从不覆盖其输入。",
        ),
        ("Halfway has a merged in already.", "Halfway 已合并了 a。"),
        (
            "A is merged into b, after c.",
            "A 应在 c 之后合并到 b。",
        ),  # the phrase ends with a value, the sentence with a full stop
        (
            "No model is named 'x'; there are: a, b and 3 more.",
            "没有名为 'x' 的模型；现有：a, b 以及另外 3 项。",
        ),
        ("No model is named 'x'; there are: none.", "没有名为 'x' 的模型；现有：无。"),
        ("No model is named 'x and y'; there are: rock.", "没有名为 'x and y' 的模型；现有：rock。"),
        (
            "Adapter a has an adapter_config.json and no weights (adapter_model.safetensors or adapter_model.bin).",
            "适配器 a 有 adapter_config.json，但没有权重（adapter_model.safetensors 或 adapter_model.bin）。",
        ),
        (
            "config.json says model_type = 'x'; supported are llama, qwen2, and for merges within Hugging Face's layout olmo.",
            "config.json 写明 model_type = 'x'；支持的有 llama, qwen2；仅在 Hugging Face 布局内合并时还支持 olmo。",
        ),
    ],
)
def test_a_sentence_is_translated_with_its_values(english: str, chinese: str) -> None:
    assert said(english) == chinese


def test_a_text_that_is_not_of_the_service_is_not_translated() -> None:
    assert said("Something else went wrong here.") is None
    assert said("There is no model 'x'. Something else went wrong here.") is None
    assert said("There is no model 'x'." + " GET /api/models lists the models." * 500) is None


@pytest.mark.parametrize(
    "text",
    [
        "a: " * 1000,
        "is not " * 500 + ".",
        "A is not b of c. " * 8,
        "The chat template x was not written: " * 50,
    ],
    ids=lambda text: text[:20],
)
def test_a_hostile_text_is_answered_soon(text: str) -> None:
    began = time.process_time()
    assert said(text.strip()) is None
    assert time.process_time() - began < 2


def test_a_sentence_that_can_be_read_in_two_ways_is_not_translated() -> None:
    pattern = Pattern.of("{1} is not {2}.", "")
    assert pattern.values("a is not b.") == ["a", "b"]
    assert pattern.values("a is not b is not c.") is None


def test_values_keep_their_numbers_in_another_order() -> None:
    assert said("Job a has no file b.") == "任务 a 没有文件 b。"
    assert said("DELETE is not offered at /x.") == "/x 不提供 DELETE。"


# ---- on the pages -------------------------------------------------------------------------------------


def test_an_error_page_is_chinese(client: FlaskClient) -> None:
    page = client.get("/models/nothing")
    assert page.status_code == 404
    assert "<h1>模型卷上没有此名称的模型</h1>" in page.text
    assert "没有名为 &#39;nothing&#39; 的模型；现有：无。" in page.text
    assert "No model is named" not in page.text


def test_the_api_stays_english(client: FlaskClient) -> None:
    problem = client.get("/api/models/nothing", headers={"Accept-Language": "zh"}).get_json()
    assert problem["detail"] == "No model is named 'nothing'; there are: none."


def test_scripts_get_sentences_and_titles(client: FlaskClient) -> None:
    texts = ["Submit it again.", "An answer of <b>another</b> server"]
    answer = client.post("/sentences", json={"texts": texts, "codes": ["disk_full", "unheard_of"]})
    assert answer.get_json() == {
        "texts": [{"text": "请重新提交。", "lang": ""}, {"text": texts[1], "lang": "en"}],
        "titles": ["模型卷的可用空间少于任务所需。", ""],
    }
    client.set_cookie("language", "en")
    answer = client.post("/sentences", json={"texts": texts, "codes": ["disk_full"]})
    assert [found["text"] for found in answer.get_json()["texts"]] == texts


def test_a_wrong_request_for_sentences_is_refused(client: FlaskClient) -> None:
    assert client.post("/sentences", json={"texts": "one"}).status_code == 422
    assert client.post("/sentences", json={"texts": ["x"] * 201}).status_code == 422


def test_a_text_without_translation_is_marked_and_follows_its_title(client: FlaskClient) -> None:
    with client.application.test_request_context(headers={"Accept-Language": "zh"}):
        assert sentence("A <new> text", "disk_full") == (
            '模型卷的可用空间少于任务所需。<span lang="en">A &lt;new&gt; text</span>'
        )
    with client.application.test_request_context(headers={"Accept-Language": "en"}):
        assert sentence("A <new> text", "disk_full") == "A &lt;new&gt; text"
