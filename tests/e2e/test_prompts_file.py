"""Files of prompts over HTTP: refused at submission, outputs written as they are completed, downloads."""

import json
from pathlib import Path

from tests.e2e.conftest import GREEDY, TEMPLATE, Line
from tests.e2e.product import Json, Product, problem


def asking(file: str) -> Json:
    return {
        "kind": "generate",
        "model": "merged",
        "template": TEMPLATE,
        "prompts_file": file,
        "sampling": GREEDY | {"repetition_penalty": 1},
    }


def put(product: Product, folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return product.volume.put_incoming(folder / name, name)


def test_a_file_of_questions_becomes_files_of_answers(
    product: Product, line: Line, questions: list[dict[str, str]], tmp_path: Path
) -> None:
    rows = [json.dumps({"prompt": row["question"]}) for row in questions]
    job = product.run(**asking(put(product, tmp_path, "questions.jsonl", "\n".join(rows))))
    result = job["result"]
    assert (result["answered"], result["failed"], result["resumed"]) == (len(questions), 0, 0)
    assert len(result["outputs"]) == 10
    page = f"/api/jobs/{job['id']}/results"
    predictions = product.http.get(page, params={"format": "predictions"}).json()
    assert predictions == [{"Input": row["question"], "Output": row["answer"]} for row in questions]
    lines = [json.loads(text) for text in product.http.get(page).text.splitlines()]
    assert lines[0]["prompts"] == len(questions)
    answers = {found["number"]: found["outputs"][0]["text"] for found in lines[1:]}
    assert answers == {number: row["answer"] for number, row in enumerate(questions)}
    modes = product.volume.files()
    assert {modes[result[name]] for name in ("results_file", "predictions_file")} == {"-rw-r--r--"}
    assert modes["results"] == "drwxr-xr-x"


def test_the_files_of_a_deleted_job_remain(product: Product, line: Line, tmp_path: Path) -> None:
    job = product.run(**asking(put(product, tmp_path, "one.txt", "hello")))
    assert product.http.delete(f"/api/jobs/{job['id']}").is_success
    assert product.http.get(f"/api/jobs/{job['id']}/results").is_success


def test_a_file_without_prompts_is_refused_at_once(product: Product, line: Line, tmp_path: Path) -> None:
    half = put(product, tmp_path, "half.jsonl", '"good"\n"\\ud83d"')
    assert "line 2" in product.refusal(422, "invalid_text", **asking(half))["detail"]
    broken = put(product, tmp_path, "broken.jsonl", '"good"\n{"prompt": 7}')
    assert "line 2" in product.refusal(422, "unreadable_file", **asking(broken))["detail"]
    product.refusal(404, "source_not_found", **asking("incoming/nothing.txt"))


def test_a_job_without_a_file_of_prompts_has_no_results(product: Product, line: Line) -> None:
    job = product.run(kind="generate", model="merged", prompt="hello", sampling=GREEDY)
    problem(product.http.get(f"/api/jobs/{job['id']}/results"), 404, "results_not_found")
