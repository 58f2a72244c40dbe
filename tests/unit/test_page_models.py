"""The page Models: its list, the pages of single models, and what hostile folders cannot do to them."""

import hashlib
import json
import re
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
from flask.testing import FlaskClient

from api.pages.lineage_graph import graph_of
from services.kinds.model_summary import ModelSummary
from services.models.card_html import card_html
from services.models.manifest import InputEntry, Manifest, write_manifest
from tests.api_client import client_of, import_request, put_model
from tests.miniature import MINIATURE, unpack_adapters
from tests.reference.peft_merge import random_model, save_model
from tests.reference.tensor_files import safetensors_file
from tests.unit.test_api_pages import LARGEST_PAGE_BYTES, loaded_by

pytestmark = pytest.mark.disable_socket

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>'
CARD = f"---\nlicense: mit\n---\n# Title of the card\n\nIt is **good**.\n\n{HOSTILE}\n\n![shown](http://evil.example/p.png)\n"
CREATED = datetime(2026, 11, 27, tzinfo=UTC)


def made(
    folder: Path, operation: str, *inputs: InputEntry, kind: str = "huggingface", weights: str = ""
) -> None:
    """Writes the manifest of a job into a folder, with the digest of one file."""
    files = {weights: hashlib.sha256((folder / weights).read_bytes()).hexdigest()} if weights else {}
    manifest = Manifest(kind=kind, created_at=CREATED, operation=operation, inputs=list(inputs), files=files)
    write_manifest(folder, manifest)


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base in both layouts, two adapters, a merge of them, its GGUF form, and folders that are damaged or hostile."""
    root = tmp_path_factory.mktemp("volume")
    shutil.copytree(MINIATURE / "llama" / "7B", root / "llama")
    shutil.copy(MINIATURE / "llama" / "tokenizer.model", root / "llama")
    source = InputEntry(role="source", name="incoming/llama")
    made(root / "llama", "import", source, kind="original", weights="consolidated.00.pth")
    for folder in unpack_adapters(root):
        made(folder, "import", source, kind="adapter", weights="adapter_model.bin")
    for name, files in {"base": {}, "merged": {"README.md": CARD}, "small": {}}.items():
        folder = put_model(root, name, {"config.json": "{}", **files})
        (folder / "model.safetensors").write_bytes(safetensors_file({f"{name}.weight": (3, 5), "b": (7,)}))
    made(root / "base", "convert", InputEntry(role="source", name="llama"))
    made(
        root / "merged", "merge", InputEntry(role="base", name="base"),
        InputEntry(role="adapter", name="chinese-llama-lora", scale=1.0),
        InputEntry(role="adapter", name="chinese-alpaca-lora", scale=0.5),
    )  # fmt: skip
    made(root / "small", "convert", InputEntry(role="source", name="merged"))
    put_model(root, "hostile", {
        "adapter_config.json": json.dumps({"peft_type": HOSTILE, "base_model_name_or_path": HOSTILE}),
        "README.md": HOSTILE,
        "<b>x<b>.txt": "",
    })  # fmt: skip
    made(root / "hostile", HOSTILE, InputEntry(role=HOSTILE, name=HOSTILE), kind=HOSTILE)
    return root


@pytest.fixture(scope="module")
def client(volume: Path) -> FlaskClient:
    return client_of(volume)


def text_of(page: str) -> str:
    """Returns a page's text without tags, in one line."""
    return " ".join(re.sub(r"<[^>]*>", " ", page).split())


def listed_names(page: str) -> list[str]:
    return re.findall(r'data-name="([^"]*)"', page)


# ---- list ---------------------------------------------------------------------------------------------


def test_the_list_has_every_folder_with_what_it_is(client: FlaskClient) -> None:
    page = client.get("/").text
    names = ["base", "chinese-alpaca-lora", "chinese-llama-lora", "hostile", "llama", "merged", "small"]
    assert listed_names(page) == names
    text = text_of(page)
    assert "7 models" in text
    assert "Merged from base + chinese-llama-lora + chinese-alpaca-lora" in text
    assert re.search(r"llama Original checkpoint .*Parameters 572\.4 K Size 1\.1. MB Vocabulary 608 ", text)


def test_the_list_alone_answers_requests_for_a_fragment(client: FlaskClient) -> None:
    page = client.get("/?search=LORA", headers={"HX-Request": "true"}).text
    assert page.startswith('<div id="list"')
    assert listed_names(page) == ["chinese-alpaca-lora", "chinese-llama-lora"]


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("kind=original", ["llama"]),
        ("kind=adapter&search=alpaca", ["chinese-alpaca-lora"]),
        ("kind=nonsense&sort=nonsense&page=nonsense&search=chinese-l", ["chinese-llama-lora"]),
        ("kind=adapter&sort=size&search=chinese", ["chinese-alpaca-lora", "chinese-llama-lora"]),
        ("search=%3Cscript%3E", []),
    ],
)
def test_the_list_is_searched_filtered_and_sorted(client: FlaskClient, query: str, names: list[str]) -> None:
    assert listed_names(client.get(f"/?{query}").text) == names


def test_folders_with_problems_are_a_filter_of_their_own_and_say_the_reason(client: FlaskClient) -> None:
    page = client.get("/?kind=problems").text
    assert "llama" not in listed_names(page)
    assert {"base", "hostile"} <= {*listed_names(page)}
    assert page.count('data-kind="error"') == len(listed_names(page))


def test_a_long_list_has_pages(tmp_path: Path) -> None:
    for number in range(120):
        put_model(tmp_path, f"m{number:03}")
    client = client_of(tmp_path)
    last = client.get("/?page=3").text
    assert listed_names(last) == [f"m{number}" for number in range(100, 120)]
    assert "Page 3 of 3" in last
    assert 'rel="next"' not in last
    assert listed_names(client.get("/?page=99").text) == listed_names(last)
    assert 'href="/?page=2"' in client.get("/").text


def test_an_empty_volume_says_how_to_begin(tmp_path: Path) -> None:
    text = text_of(client_of(tmp_path).get("/").text)
    assert "There are no models yet. Drop a checkpoint" in text
    assert "Downloads from the Hub are switched off." in text


def test_a_job_that_makes_a_model_is_shown_until_it_has_ended(tmp_path: Path) -> None:
    client = client_of(tmp_path)
    job = client.post("/api/jobs", json=import_request(tmp_path, "arriving")).get_json()
    page = client.get("/").text
    assert f'data-job="{job["id"]}"' in page
    assert "In progress arriving Queued" in text_of(page)
    client.post(f"/api/jobs/{job['id']}/cancel")
    assert "In progress" not in client.get("/").text


def test_uploads_are_counted_in_the_language_of_the_page(tmp_path: Path) -> None:
    made(
        put_model(tmp_path, "sent", {"config.json": "{}"}),
        "import",
        InputEntry(role="source", name="4 uploads"),
    )
    client = client_of(tmp_path)
    for path in ("/", "/models/sent"):
        assert "4 uploads" in client.get(path, headers={"Accept-Language": "en"}).text
        assert "4 个上传文件" in client.get(path, headers={"Accept-Language": "zh-CN"}).text


def test_the_list_is_chinese_for_chinese_browsers(client: FlaskClient) -> None:
    text = text_of(client.get("/", headers={"Accept-Language": "zh-CN"}).text)
    assert "7 个模型" in text
    assert "引入模型" in text


# ---- one model ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["absent", "incoming", "LLAMA", "..", "a%20b", "x" * 97])
@pytest.mark.parametrize("part", ["", "/tensors", "/delete"])
def test_an_unknown_model_is_a_page_with_the_status_404(client: FlaskClient, name: str, part: str) -> None:
    response = client.get(f"/models/{name}{part}")
    assert (response.status_code, response.mimetype) == (404, "text/html")


def test_a_model_has_its_facts(client: FlaskClient) -> None:
    text = text_of(client.get("/models/llama").text)
    assert "Parameters 572.4 K (572,432)" in text
    assert "Vocabulary 608 tokens" in text
    assert "hidden_size 112" in text
    assert "Imported from incoming/llama" in text
    assert "Generated by" not in text  # no engine reads an original checkpoint


def test_a_model_that_generates_names_its_engine(tmp_path: Path) -> None:
    save_model(random_model(torch.float32), tmp_path / "tiny")
    client = client_of(tmp_path)
    assert "Generated by Graftwerk's reference engine" in text_of(client.get("/models/tiny").text)
    chinese = client.get("/models/tiny", headers={"Accept-Language": "zh"}).text
    assert "生成引擎 Graftwerk 的参考引擎" in text_of(chinese)


def test_the_page_with_all_its_files_is_small(client: FlaskClient) -> None:
    files = loaded_by(client, "/models/merged")
    assert sum(map(len, files.values())) + len(client.get("/models/merged").data) < LARGEST_PAGE_BYTES


def test_the_lineage_is_drawn_over_all_generations(client: FlaskClient) -> None:
    page = client.get("/models/small").text
    drawn = re.findall(r"<title>([^<(]*) \(", page)
    assert sorted(drawn) == ["base", "chinese-alpaca-lora", "chinese-llama-lora", "llama", "merged", "small"]
    assert re.search(r">2\.\s*× 0\.5<", page)
    assert 'href="/models/chinese-alpaca-lora"' in page
    assert "base base , adapter chinese-llama-lora × 1, adapter chinese-alpaca-lora × 0.5" in text_of(page)
    chinese = text_of(client.get("/models/small", headers={"Accept-Language": "zh"}).text)
    assert "基座模型 base , 适配器 chinese-llama-lora × 1, 适配器 chinese-alpaca-lora × 0.5" in chinese
    assert "small : 来源 merged" in chinese


def test_an_adapter_leads_to_the_merge_with_its_base_in_the_right_order(client: FlaskClient) -> None:
    page = client.get("/models/chinese-alpaca-lora").text
    assert 'href="/merge?base=llama&amp;adapters=chinese-llama-lora%2Cchinese-alpaca-lora"' in page
    assert "Merge with llama" in text_of(page)


def test_the_card_is_shown_as_markdown_and_nothing_of_it_can_run(client: FlaskClient) -> None:
    page = client.get("/models/merged").text
    assert "<h3>Title of the card</h3>" in page
    assert "<strong>good</strong>" in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "evil.example" not in page
    assert "License mit" in text_of(page)


@pytest.mark.parametrize(
    "path", ["/", "/models/hostile", "/models/merged", "/models/hostile/delete", "/models/hostile/tensors"]
)
def test_names_and_texts_of_a_folder_never_become_markup(client: FlaskClient, path: str) -> None:
    page = client.get(path, query_string={"search": HOSTILE} if path.endswith("tensors") else None).text
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert "<b>x" not in page


def test_the_card_keeps_tables_and_links_of_the_web_alone() -> None:
    html = card_html(
        "# A\n\n[web](https://a.example/) [own](/api/models) [js](javascript:alert) <b>x</b>\n\n|a|\n|:-:|\n|1|\n"
    )
    assert '<a href="https://a.example/" rel="noopener noreferrer nofollow">web</a>' in html
    assert "/api/models" not in html
    assert 'href="javascript' not in html
    assert "&lt;b&gt;x&lt;/b&gt;" in html
    assert "<td>1</td>" in html
    assert "style=" not in html


def test_a_card_that_is_too_large_is_named_and_not_shown(tmp_path: Path) -> None:
    put_model(tmp_path, "wordy", {"config.json": "{}", "README.md": "word " * 60_000})
    text = text_of(client_of(tmp_path).get("/models/wordy").text)
    assert "README.md has 300000 bytes; at most 262144 are read. Download the file to read it." in text


# ---- lineage ------------------------------------------------------------------------------------------


def summary(name: str, *inputs: str, operation: str = "merge") -> ModelSummary:
    entries = [{"role": "base", "name": other, "digest": None, "scale": None} for other in inputs]
    lineage = {"operation": operation, "inputs": entries}
    return ModelSummary(name=name, kind="huggingface", size_bytes=0, lineage=lineage)


def test_generations_are_columns_by_the_longest_way() -> None:
    models = {m.name: m for m in (summary("a"), summary("b", "a"), summary("c", "b", "a"), summary("d", "c"))}
    graph = graph_of("c", models)
    assert {node.name: node.column for node in graph.nodes} == {"a": 0, "b": 1, "c": 2, "d": 3}
    assert sorted((edge.start.name, edge.end.name) for edge in graph.edges) == [
        ("a", "b"), ("a", "c"), ("b", "c"), ("c", "d"),
    ]  # fmt: skip
    assert not graph.is_cut


def test_a_lineage_in_a_circle_ends() -> None:
    models = {m.name: m for m in (summary("a", "b"), summary("b", "a"))}
    assert {node.name for node in graph_of("a", models).nodes} == {"a", "b"}


def test_a_dense_lineage_is_cut() -> None:
    names = [f"m{number}" for number in range(60)]
    models = {name: summary(name, *names[:number]) for number, name in enumerate(names)}
    graph = graph_of("m59", models)
    assert len(graph.nodes) == 40
    assert graph.is_cut


def test_an_import_has_no_parent_even_if_a_model_has_the_name_of_its_source() -> None:
    models = {m.name: m for m in (summary("a"), summary("b", "a", operation="import"))}
    assert graph_of("b", models).edges == []


# ---- roles ----


@pytest.mark.parametrize(
    ("role", "may_submit", "may_delete"),
    [("read", False, False), ("submit", True, False), ("admin", True, True)],
)
def test_a_role_sees_what_it_may_do(
    volume: Path, tmp_path: Path, role: str, may_submit: bool, may_delete: bool
) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"{hashlib.sha256(b'secret').hexdigest()} {role} someone\n")
    client = client_of(volume, api_keys_file=keys)
    headers = {"Authorization": "Bearer secret"}
    listed, one = client.get("/", headers=headers).text, client.get("/models/llama", headers=headers).text
    assert ('id="bring"' in listed) is may_submit
    assert ('id="verify"' in one) is may_submit
    assert ('id="convert"' in one) is may_submit
    assert ('id="delete"' in one) is may_delete


# ---- tensors ------------------------------------------------------------------------------------------


def test_the_tensors_are_a_table_of_the_headers(client: FlaskClient) -> None:
    text = text_of(client.get("/models/merged/tensors").text)
    assert "2 tensors, 44 B · model.safetensors" in text
    assert "b 7 F16 14 B merged.weight 3 × 5 F16 30 B" in text


def test_the_tensors_are_searched_and_in_parts(client: FlaskClient) -> None:
    first = text_of(client.get("/models/chinese-alpaca-lora/tensors?search=LORA_A").text)
    assert first.startswith("21 of 44 tensors")
    assert "lora_B" not in first
    assert "No tensor has “nothing”" in text_of(client.get("/models/merged/tensors?search=nothing").text)


def test_a_table_of_thousands_of_tensors_has_pages(tmp_path: Path) -> None:
    folder = put_model(tmp_path, "many", {"config.json": "{}"})
    (folder / "model.safetensors").write_bytes(safetensors_file({f"t{n:04}": (1,) for n in range(1050)}))
    client = client_of(tmp_path)
    last = client.get("/models/many/tensors?page=11").text
    assert re.findall(r"<code>(t\d+)</code>", last) == [f"t{n}" for n in range(1000, 1050)]
    assert "Page 11 of 11" in last


def test_a_damaged_file_is_named_next_to_the_tensors_of_the_others(tmp_path: Path) -> None:
    folder = put_model(tmp_path, "half", {"config.json": "{}"})
    (folder / "model-1.safetensors").write_bytes(safetensors_file({"whole": (2, 3)}))
    (folder / "model-2.safetensors").write_bytes(safetensors_file({"cut": (2, 3)})[:-1])
    page = client_of(tmp_path).get("/models/half/tensors").text
    assert "whole" in page
    assert "model-2.safetensors has" in page
    assert 'data-kind="error"' in page


# ---- deletion -----------------------------------------------------------------------------------------


def test_the_dialog_names_what_was_made_of_a_model_and_its_adapters(client: FlaskClient) -> None:
    page = client.get("/models/llama/delete").text
    made, adapters = ["base (convert)"], ["chinese-alpaca-lora", "chinese-llama-lora"]
    assert re.findall(r"<li>(.*?)</li>", page) == made + adapters
    assert "No other model was made of it" in client.get("/models/small/delete").text


def test_the_dialog_names_unfinished_jobs(tmp_path: Path) -> None:
    put_model(tmp_path, "llama", {"params.json": "{}"})
    client = client_of(tmp_path)
    request = {"kind": "verify", "model": "llama"}
    refused = client.post("/api/jobs", json=request)
    assert refused.status_code >= 400
    put_model(tmp_path, "zh")
    write_manifest(
        tmp_path / "zh",
        Manifest(kind="adapter", created_at=CREATED, operation="import", files={"a": "0" * 64}),
    )
    job = client.post("/api/jobs", json={"kind": "verify", "model": "zh"}).get_json()
    page = client.get("/models/zh/delete").text
    assert f'href="/jobs/{job["id"]}"' in page
    assert "1 unfinished job needs it" in page
    assert "verify (queued)</a>" in page
    assert "校验 (排队中)</a>" in client.get("/models/zh/delete", headers={"Accept-Language": "zh"}).text
