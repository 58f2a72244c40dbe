"""Models over HTTP: the list, their files, deletion."""

import json

import pytest

from tests.e2e.conftest import Incoming, Line
from tests.e2e.product import Json, Product, problem


def test_the_list_has_every_model_that_the_jobs_made(product: Product, line: Line) -> None:
    assert {"llama", "llama-hf", "zh", "alpaca", "merged"} <= set(product.model_names())
    assert "incoming" not in product.model_names()


def test_a_model_is_described(product: Product, line: Line) -> None:
    kinds = {name: product.get(f"/api/models/{name}")["kind"] for name in ("llama", "merged", "zh")}
    assert len(set(kinds.values())) == 3


def test_a_merged_model_names_its_inputs(product: Product, line: Line) -> None:
    manifest = product.http.get("/api/models/merged/files/manifest.json").json()
    lineage = json.dumps(manifest)
    assert line.merge["id"] in lineage
    assert all(f'"{name}"' in lineage for name in ("llama-hf", "zh", "alpaca"))


def test_a_file_is_downloaded_whole_and_in_part(product: Product, line: Line) -> None:
    path = "/api/models/merged/files/config.json"
    whole = product.http.get(path)
    assert whole.json()["num_hidden_layers"] == 3
    assert whole.headers["Accept-Ranges"] == "bytes"
    part = product.http.get(path, headers={"Range": "bytes=5-14"})
    assert part.status_code == 206
    assert part.content == whole.content[5:15]
    assert part.headers["Content-Range"] == f"bytes 5-14/{len(whole.content)}"


@pytest.mark.parametrize("path", ["../llama/params.json", "..%2fllama%2f7B%2fparams.json", "absent.json"])
def test_a_file_outside_the_model_is_not_served(product: Product, line: Line, path: str) -> None:
    answer = product.http.get(f"/api/models/merged/files/{path}")
    assert answer.status_code in (404, 422)
    problem(answer, answer.status_code, answer.json()["code"])


def test_files_of_models_are_world_readable(product: Product, line: Line) -> None:
    modes = {path: mode for path, mode in product.volume.files().items() if path.startswith("merged")}
    assert len(modes) > 4
    assert {mode for mode in modes.values() if mode.startswith("-")} == {"-rw-r--r--"}
    assert {mode for mode in modes.values() if mode.startswith("d")} == {"drwxr-xr-x"}


def test_a_model_is_deleted_with_all_its_files(product: Product, incoming: Incoming) -> None:
    product.run(kind="import", source={"zip": incoming.chinese_llama_lora}, target="short-lived")
    assert product.http.delete("/api/models/short-lived").status_code == 204
    problem(product.http.get("/api/models/short-lived"), 404, "model_not_found")
    assert not [path for path in product.volume.files() if "short-lived" in path]


def test_a_model_that_a_job_needs_is_not_deleted(product: Product, slow: Json) -> None:
    job = product.submit(**slow, target="needs-slow")
    assert job["id"] in problem(product.http.delete("/api/models/slow"), 409, "model_in_use")["detail"]
    product.cancel(job["id"])
    product.wait(job["id"])


def test_an_import_checks_the_digests_that_it_was_given(product: Product, incoming: Incoming) -> None:
    wrong = {"7B/params.json": "0" * 64}
    job = product.submit(kind="import", source={"path": incoming.llama}, target="wrong", sha256=wrong)
    ended = product.wait(job["id"])
    assert (ended["status"], ended["error"]["code"]) == ("failed", "digest_mismatch")
    assert "7B/params.json" in ended["error"]["message"]
    assert "wrong" not in product.model_names()
