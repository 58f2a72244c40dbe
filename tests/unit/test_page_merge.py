"""The page New merge: what it offers, the requests that it composes, the progress of a chain of jobs."""

import hashlib
import html
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from fakeredis import FakeRedis, FakeServer
from flask.testing import FlaskClient

from api.pages.choices import MOST_CHOICES
from services.kinds import parse_request
from services.kinds.model_summary import ModelSummary
from services.kinds.shared import GgufDType
from services.models.store import ModelStore
from services.preflight import preflight
from tests.api_client import client_of, put_model
from tests.miniature import MINIATURE, unpack_adapters
from tests.page_module import call, call_all
from tests.reference.tensor_files import write_adapter

pytestmark = pytest.mark.disable_socket

SCRIPT = "merge-request.js"
Json = dict[str, Any]


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """A volume with the miniature's checkpoint and adapters."""
    shutil.copytree(MINIATURE / "llama", tmp_path / "llama")
    unpack_adapters(tmp_path)
    return tmp_path


def data_of(text: str, name: str = "merge-data") -> Any:
    found = re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', text, re.S)
    assert found, text
    return json.loads(found[1])


RADIO = re.compile(
    r"""<input type="radio" name="base" value="([^"]+)"(?: data-facts='([^']*)')?( checked)?( disabled)?>"""
)
ADAPTER = re.compile(r"""<li data-name="([^"]+)" data-facts='([^']*)'>""")


def bases_in(text: str) -> list[str]:
    """Names of the models that can be chosen as a base."""
    return [name for name, facts, _, _ in RADIO.findall(text) if facts]


def adapters_in(text: str) -> list[str]:
    return [name for name, _ in ADAPTER.findall(text)]


def chosen_in(text: str) -> list[str]:
    return [name for name, _, checked, _ in RADIO.findall(text) if checked]


# ---- what is offered ----------------------------------------------------------------------------------


def test_bases_are_offered_and_other_models_are_shown_with_the_reason(volume: Path) -> None:
    put_model(volume, "half", {"config.json": "{"})
    page = client_of(volume).get("/merge").text
    radios = {name: disabled for name, _, _, disabled in RADIO.findall(page)}
    assert radios == {
        "llama": "",
        "chinese-llama-lora": " disabled",
        "chinese-alpaca-lora": " disabled",
        "half": " disabled",
    }
    assert "An adapter: add it to a base below." in page
    assert "config.json" in page


def test_the_facts_for_the_script_are_those_of_the_files(volume: Path) -> None:
    page = client_of(volume).get("/merge").text
    base = {name: json.loads(facts) for name, facts, _, _ in RADIO.findall(page) if facts}["llama"]
    adapters = {name: json.loads(facts) for name, facts in ADAPTER.findall(page)}
    assert (base["kind"], base["width"], base["vocabulary"], base["inputs"]) == ("original", 112, 608, [])
    assert {facts["width"] for facts in adapters.values()} == {112}
    assert {name: facts["vocabulary"] for name, facts in adapters.items()} == {
        "chinese-llama-lora": 1104,
        "chinese-alpaca-lora": 1105,
    }
    assert set(data_of(page)["names"]) == {
        "llama",
        "chinese-llama-lora",
        "chinese-alpaca-lora",
        "incoming",
        "results",
    }


def test_without_a_base_the_page_leads_to_the_models(tmp_path: Path) -> None:
    page = client_of(tmp_path).get("/merge").text
    assert "There is none yet." in page
    assert re.search(r'<a class="button" href="/">', page)
    assert '<form id="composition"' not in page


def test_without_an_adapter_the_page_leads_to_the_models(tmp_path: Path) -> None:
    shutil.copytree(MINIATURE / "llama", tmp_path / "llama")
    page = client_of(tmp_path).get("/merge").text
    assert "There is no adapter yet." in page
    assert bases_in(page) == ["llama"]


def test_adapters_that_cannot_be_read_are_listed_with_the_problem(volume: Path) -> None:
    put_model(
        volume,
        "empty",
        {
            "adapter_config.json": '{"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]}',
            "adapter_model.bin": "x" * 443,
        },
    )
    page = client_of(volume).get("/merge").text
    assert "1 adapter that cannot be read" in page
    assert 'data-add="empty"' not in page
    problem = re.search(r'<strong class="wrap">empty</strong><span class="soft wrap">([^<]+)</span>', page)
    assert problem
    assert "adapter_model.bin" in problem[1]
    assert "empty" not in adapters_in(page)


def test_text_from_files_never_becomes_markup(volume: Path) -> None:
    hostile = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
    write_adapter(volume / "hostile", base_model_name_or_path=hostile)
    page = client_of(volume).get("/merge").text
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    facts = dict(ADAPTER.findall(page))["hostile"]
    assert json.loads(html.unescape(facts))["path"] == hostile


def test_all_encodings_are_offered_with_their_meaning(volume: Path) -> None:
    page = client_of(volume).get("/merge").text
    offered = re.findall(
        r'<option value="(\w+)" data-format="gguf" data-bits="([\d.]+)" data-help="([^"]+)"', page
    )
    assert sorted(name for name, _, _ in offered) == sorted(get_args(GgufDType))
    assert all(1.9 < float(bits) < 9 and help_text.endswith(".") for _, bits, help_text in offered)


def test_the_page_is_in_chinese(volume: Path) -> None:
    page = client_of(volume).get("/merge", headers={"Accept-Language": "zh-CN"}).text
    assert "新建合并" in page
    assert "适配器" in page


# ---- many models --------------------------------------------------------------------------------------

MANY = 1000
LARGEST_PAGE_BYTES = 150_000


def many_models() -> list[ModelSummary]:
    """As many bases as adapters as broken adapters; the adapter `adapter-0900` records the base `base-0900`."""
    bases = [
        {"name": f"base-{number:04}", "kind": "huggingface", "parameters": 7_000_000_000}
        for number in range(MANY)
    ]
    adapters = [
        {"name": f"adapter-{number:04}", "kind": "adapter", "adapter": {"type": "LORA", "base": {"model": f"base-{number:04}"}}}
        for number in range(MANY)
    ]  # fmt: skip
    broken = [
        {"name": f"broken-{number:04}", "kind": "adapter", "problems": ["It has no weights."]}
        for number in range(MANY)
    ]
    return [ModelSummary.model_validate({"size_bytes": 1, **model}) for model in (*adapters, *bases, *broken)]


@pytest.fixture
def crowded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Returns the text at an address of a service with many models."""
    client, models = client_of(tmp_path), many_models()
    reader = client.application.extensions["graftwerk"].models
    monkeypatch.setattr(type(reader), "models", lambda self: models)
    return lambda address: client.get(address).text


def test_a_page_of_many_models_is_small_and_says_how_many_there_are(crowded: Callable[[str], str]) -> None:
    page = crowded("/merge")
    assert len(page.encode()) < LARGEST_PAGE_BYTES
    assert bases_in(page) == [f"base-{number:04}" for number in range(MOST_CHOICES)]
    assert adapters_in(page) == [f"adapter-{number:04}" for number in range(MOST_CHOICES)]
    assert page.count("30 of 1,000 are listed. Search for the others.") == 2
    assert "2000 models that cannot be a base" in page
    assert page.count("and 1970 more") == 1
    assert page.count("and 970 more") == 1


def test_a_search_finds_what_is_not_listed(crowded: Callable[[str], str]) -> None:
    found = crowded("/merge/bases?search=HUGGING+-087")
    assert bases_in(found) == [f"base-{number:04}" for number in range(870, 880)]
    assert "10 found" in found
    assert "cannot be a base" not in found
    assert adapters_in(crowded("/merge/adapters?search=adapter-0999")) == ["adapter-0999"]
    assert "0 found" in crowded("/merge/bases?search=none+of+them")
    assert "0 found" in crowded("/merge/adapters?search=none+of+them")


def test_the_chosen_base_stays_listed_and_chosen(crowded: Callable[[str], str]) -> None:
    found = crowded("/merge/bases?search=base-0001&base=base-0900")
    assert bases_in(found) == ["base-0001", "base-0900"]
    assert chosen_in(found) == ["base-0900"]
    assert "1 found" in found


@pytest.mark.parametrize(
    ("query", "chosen"),
    [
        ("base=base-0950", ["base-0950"]),
        ("base=adapter-0001", []),
        ("base=missing", []),
        ("adapters=adapter-0900@0.5,adapter-0001", ["base-0900"]),
        ("base=base-0950&adapters=adapter-0900", ["base-0950"]),
        ("", []),
    ],
)
def test_what_the_address_names_is_listed_and_the_base_is_chosen(
    crowded: Callable[[str], str], query: str, chosen: list[str]
) -> None:
    page = crowded(f"/merge?{query}")
    assert chosen_in(page) == chosen
    for name in re.findall(r"adapter-\d+", query.partition("adapters=")[2]):
        assert name in adapters_in(page)


def test_the_only_base_is_chosen(volume: Path) -> None:
    assert chosen_in(client_of(volume).get("/merge").text) == ["llama"]


# ---- progress -----------------------------------------------------------------------------------------


@pytest.fixture
def client(volume: Path) -> FlaskClient:
    return client_of(volume, redis=FakeRedis(server=FakeServer()))


MERGE = {"kind": "merge", "base": "llama", "adapters": ["chinese-llama-lora"], "target": "zh"}


def test_the_progress_of_jobs_has_their_state(client: FlaskClient) -> None:
    first = client.post("/api/jobs", json={"kind": "convert", "source": "llama", "target": "llama-hf"}).json
    second = client.post("/api/jobs", json=MERGE | {"after": [first["id"]]}).json
    page = client.get(f"/merge?jobs={first['id']},{second['id']}").text
    jobs = data_of(page, "merge-jobs")
    assert [(job["id"], job["kind"], job["status"]) for job in jobs] == [
        (first["id"], "convert", "queued"),
        (second["id"], "merge", "queued"),
    ]
    assert data_of(page, "merge-generating") == ["huggingface", "gguf"]
    assert '<h1 class="wrap">zh</h1>' in page
    assert "No merge worker is alive." in jobs[1]["warnings"][0]


def test_a_job_that_was_deleted_is_counted(client: FlaskClient) -> None:
    job = client.post("/api/jobs", json=MERGE).json
    page = client.get(f"/merge?jobs=11111111-2222-3333-4444-555555555555,{job['id']}").text
    assert "The record of 1 job has expired or was deleted." in page
    assert len(data_of(page, "merge-jobs")) == 1


@pytest.mark.parametrize(("role", "may_submit"), [("read", False), ("submit", True)])
def test_who_may_not_submit_sees_the_plan_and_no_button(
    volume: Path, tmp_path_factory: pytest.TempPathFactory, role: str, may_submit: bool
) -> None:
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(f"{hashlib.sha256(b'secret').hexdigest()} {role} someone\n")
    client = client_of(volume, api_keys_file=keys)
    client.post("/login", data={"key": "secret", "next": ""})
    page = client.get("/merge").text
    assert ('id="submit"' in page) is may_submit
    assert ("Your key may read, but not submit jobs." in page) is not may_submit
    assert "data-needs-key" in page


@pytest.mark.parametrize("ids", ["11111111-2222-3333-4444-555555555555", "<b>", "a" * 5000])
def test_jobs_that_do_not_exist_are_a_page_with_the_reason(client: FlaskClient, ids: str) -> None:
    response = client.get("/merge", query_string={"jobs": ids})
    assert response.status_code == 404
    assert "<b>" not in response.text


@pytest.mark.parametrize("job_id", ["11111111-2222-3333-4444-555555555555", "x"])
def test_the_result_of_an_unknown_job_is_not_found(client: FlaskClient, job_id: str) -> None:
    assert client.get(f"/merge/jobs/{job_id}/result").status_code == 404


# ---- requests -----------------------------------------------------------------------------------------

FORM: Json = {
    "base": "llama", "adapters": [{"name": "zh", "scale": 1}, {"name": "alpaca", "scale": 0.5}], "target": "new",
    "output_format": "huggingface", "dtype": "", "max_shard_size": "", "ranks": None, "imatrix": "", "rounding": "per_adapter",
    "base_precision": "original", "compare_precisions": False, "verify": True, "force": False, "keptBase": None, "keptMerge": None,
}  # fmt: skip
PLAIN = {
    "kind": "merge",
    "base": "llama",
    "adapters": ["zh", {"name": "alpaca", "scale": 0.5}],
    "target": "new",
}


def test_defaults_are_left_out_of_the_request() -> None:
    assert call(SCRIPT, "chainOf", FORM) == [PLAIN]
    assert call(SCRIPT, "checksOf", FORM) == [PLAIN]


def test_all_options_are_in_the_request() -> None:
    form = FORM | {
        "output_format": "gguf", "dtype": "q4_k_m", "imatrix": {"text_file": "incoming/x.txt"}, "rounding": "once", "verify": False,
        "base_precision": "dequantized", "compare_precisions": True, "force": True, "max_shard_size": "1GB", "ranks": 2,
    }  # fmt: skip
    [request] = call(SCRIPT, "chainOf", form)
    assert request == PLAIN | {
        "output_format": "gguf", "dtype": "q4_k_m", "imatrix": {"text_file": "incoming/x.txt"}, "rounding": "once", "verify": False,
        "base_precision": "dequantized", "compare_precisions": True, "force": True,
    }  # fmt: skip
    parse_request(request)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"max_shard_size": "500MB", "ranks": 4}, {"max_shard_size": "500MB"}),
        (
            {"output_format": "meta", "ranks": 2, "max_shard_size": "5GB"},
            {"output_format": "meta", "ranks": 2},
        ),
        ({"output_format": "gguf", "dtype": "q8_0"}, {"output_format": "gguf", "dtype": "q8_0"}),
    ],
)
def test_options_of_another_format_are_left_out(options: Json, expected: Json) -> None:
    assert call(SCRIPT, "chainOf", FORM | options) == [PLAIN | expected]


def test_a_kept_base_is_converted_first_and_merged_into() -> None:
    form = FORM | {"keptBase": "llama-hf"}
    convert = {"kind": "convert", "source": "llama", "target": "llama-hf"}
    assert call(SCRIPT, "chainOf", form) == [convert, PLAIN | {"base": "llama-hf"}]
    assert call(SCRIPT, "checksOf", form) == [PLAIN, convert]


def test_a_kept_merge_is_converted_to_the_chosen_format() -> None:
    form = FORM | {"keptMerge": "new-hf", "output_format": "gguf", "dtype": "q4_k_m", "verify": False}
    merged = PLAIN | {"target": "new-hf", "verify": False}
    assert call(SCRIPT, "chainOf", form) == [
        merged,
        {"kind": "convert", "source": "new-hf", "target": "new", "output_format": "gguf", "dtype": "q4_k_m"},
    ]
    assert call(SCRIPT, "checksOf", form) == [
        PLAIN | {"verify": False, "output_format": "gguf", "dtype": "q4_k_m"},
        merged,
    ]


def test_the_proposed_request_is_accepted(volume: Path) -> None:
    adapters = [{"name": name, "scale": 1} for name in ("chinese-llama-lora", "chinese-alpaca-lora")]
    form = FORM | {"adapters": adapters}
    target = call(SCRIPT, "proposedName", form, ["llama"])
    [request] = call(SCRIPT, "chainOf", form | {"target": target})
    assert preflight(parse_request(request), ModelStore(volume), {}).writes is not None
    assert target == "llama-chinese-alpaca"


# ---- names, marks, address ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "names", "expected"),
    [
        ({}, [], "llama-alpaca"),
        ({}, ["LLaMA-alpaca", "llama-alpaca-2"], "llama-alpaca-3"),
        ({"base": "llama-7b-hf", "adapters": [{"name": "my_lora"}]}, [], "llama-7b-my"),
        ({"base": "original", "adapters": [{"name": "lora"}]}, [], "original-lora"),
        ({"output_format": "gguf", "dtype": "q4_k_m"}, [], "llama-alpaca-q4_k_m"),
        ({"output_format": "meta"}, [], "llama-alpaca-meta"),
        ({"adapters": []}, [], ""),
        ({"base": "b" * 96}, [], "b" * 96),
        ({"base": "b" * 96}, ["b" * 96], "b" * 94 + "-2"),
    ],
)
def test_a_free_name_is_proposed(changes: Json, names: list[str], expected: str) -> None:
    assert call(SCRIPT, "proposedName", FORM | changes, names) == expected


def test_names_are_checked_by_the_rule_of_the_volume() -> None:
    names = {
        "": "empty",
        "a": None,
        "A.b_c-9": None,
        "-a": "rule",
        "a b": "rule",
        "ü": "rule",
        "a" * 97: "rule",
        "Taken": "exists",
    }
    found = call_all(SCRIPT, [["nameProblem", name, ["taken", "incoming"]] for name in names])
    assert found == list(names.values())


BASE = {"name": "llama", "width": 4096, "vocabulary": 100, "known": "LLaMA-7B", "inputs": ["org/llama@1234"]}


@pytest.mark.parametrize(
    ("adapter", "expected"),
    [
        ({}, None),
        ({"vocabulary": 100}, None),
        ({"vocabulary": 99}, "shrinks"),
        ({"width": 4096}, None),
        ({"width": 5120}, "otherWidth"),
        ({"base": "llama"}, None),
        ({"base": "other"}, "otherBase"),
        ({"base": "copy", "path": "org/llama"}, None),
        ({"known": "Chinese-LLaMA-13B", "knownBase": "LLaMA-13B"}, "knownBase"),
        ({"known": "Chinese-LLaMA-7B", "knownBase": "LLaMA-7B"}, None),
    ],
)
def test_adapters_that_do_not_seem_to_fit_are_marked(adapter: Json, expected: str | None) -> None:
    found = call(SCRIPT, "markOf", adapter, BASE)
    assert (found and found["text"]) == expected


def test_the_address_keeps_a_composition() -> None:
    query = call(SCRIPT, "toQuery", FORM | {"output_format": "gguf", "dtype": "q8_0"}, False)
    assert query == "base=llama&adapters=zh%2Calpaca%400.5&target=new&output_format=gguf&dtype=q8_0"
    assert call(SCRIPT, "toQuery", FORM, True) == "base=llama&adapters=zh%2Calpaca%400.5"
