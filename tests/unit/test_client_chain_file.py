"""Files of chains: what implies what, the order, and mistakes with their lines."""

from pathlib import Path

import pytest
from graftwerk.chain_file import read_chain
from graftwerk.errors import UsageError


def written(folder: Path, text: str) -> Path:
    file = folder / "chain.yaml"
    file.write_text(text, encoding="utf-8")
    return file


WALK = """\
jobs:
  - {name: ask, kind: generate, model: ab, prompt: 你好, after: merge}
  - {name: base, kind: import, source: "hub:org/llama@main"}
  - name: merge
    kind: merge
    base: llama
    adapters: [zh, {name: extra, scale: 0.5}]
    target: ab
    after: [check]
  - {name: check, kind: verify, model: llama}
  - {name: both, kind: compare, variants: [{model: llama}, {model: ab, adapters: [{name: zh, scale: 1}]}], prompt: x}
"""


def test_inputs_that_an_earlier_job_makes_imply_after_and_set_the_order(tmp_path: Path) -> None:
    steps = read_chain(written(tmp_path, WALK))
    assert {step.name: set(step.after) for step in steps} == {
        "ask": {"merge"},
        "base": set(),
        "merge": {"check", "base"},
        "check": {"base"},
        "both": {"base", "merge"},
    }
    order = [step.name for step in steps]
    for step in steps:
        assert all(order.index(name) < order.index(step.name) for name in step.after)


def test_requests_are_those_of_the_file_without_name_and_after(tmp_path: Path) -> None:
    steps = {step.name: step for step in read_chain(written(tmp_path, WALK))}
    assert steps["base"].request == {
        "kind": "import",
        "source": {"hub": "org/llama", "revision": "main"},
        "target": "llama",
    }
    assert steps["merge"].request == {
        "kind": "merge",
        "base": "llama",
        "adapters": ["zh", {"name": "extra", "scale": 0.5}],
        "target": "ab",
    }
    assert (steps["merge"].line, steps["check"].line) == (4, 10)


@pytest.mark.parametrize("source", ["./llama", "llama", "{path: ./llama}", "{zip: llama}"])
def test_a_local_source_is_relative_to_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    (tmp_path / "deep" / "llama").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    file = written(tmp_path / "deep", f"jobs: [{{name: a, kind: import, source: {source}, target: x}}]")
    (step,) = read_chain(file.relative_to(tmp_path))
    assert step.upload is not None
    assert step.upload.resolve() == tmp_path / "deep" / "llama"


def test_a_source_on_the_volume_is_not_uploaded(tmp_path: Path) -> None:
    (step,) = read_chain(written(tmp_path, "jobs: [{name: a, kind: import, source: incoming/x.zip}]"))
    assert (step.upload, step.request["source"], step.request["target"]) == (
        None,
        {"zip": "incoming/x.zip"},
        "x",
    )


def test_a_date_is_text(tmp_path: Path) -> None:
    (step,) = read_chain(written(tmp_path, "jobs: [{name: a, kind: generate, model: m, prompt: 2026-01-02}]"))
    assert step.request["prompt"] == "2026-01-02"


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("", 1, "no list `jobs`"),
        ("- name: a", 1, "no list `jobs`"),
        ("jobs: []", 1, "not a list of jobs"),
        ("jobs: [{name: a, kind: verify, model: m}]\nmore: 1", 1, "other keys"),
        ("jobs:\n  - merge", 1, "'merge' is not a job"),
        ("jobs:\n\n  - {name: a}", 3, "no `kind`"),
        ("jobs:\n  - {kind: merge}", 2, "no `name`"),
        ("jobs:\n  - {name: 7, kind: merge}", 2, "no `name`"),
        ("jobs:\n  - {name: a, kind: verify}\n  - {name: a, kind: verify}", 3, "'a' is used twice"),
        ("jobs:\n  - {name: a, kind: verify, after: [b]}", 2, "'a' is after 'b', which is not a job"),
        ("jobs:\n  - {name: a, kind: verify, after: {b: 1}}", 2, "`after` of 'a' is not a list"),
        ("jobs:\n  - {name: a, kind: merge, target: x}\n  - {name: b, kind: merge, target: x}", 3, "'a' makes 'x' too"),
        ("jobs:\n  - {name: a, kind: verify, after: b}\n  - {name: b, kind: verify, after: a}", 2, "wait for each other"),
        ("jobs:\n  - {name: a, kind: verify, after: a}", 2, "a after a"),
        ("jobs:\n  - {name: a, kind: import, source: ./absent}", 2, "no local file or folder"),
        ("jobs:\n  - {name: a, kind: verify, x: .nan}", 2, "JSON does not know"),
        ("jobs:\n  - name: a\n    kind: verify\n    kind: merge", 4, "'kind' is repeated"),
        ("jobs:\n  - {name: a, 1: verify}", 2, "1 is not text"),
        ("jobs:\n  - {name: a, kind: verify", 2, "expected"),
        ("jobs:\n  - !!python/object:os.system {}", 2, "could not determine a constructor"),
    ],
)  # fmt: skip
def test_a_mistake_names_the_file_and_the_line(tmp_path: Path, text: str, line: int, problem: str) -> None:
    file = written(tmp_path, text)
    with pytest.raises(UsageError) as found:
        read_chain(file)
    assert found.value.detail.startswith(f"{file}, line {line}: ")
    assert problem in found.value.detail


def test_a_file_that_is_not_there_or_not_text_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_chain(tmp_path / "absent.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not UTF-8"):
        read_chain(tmp_path / "binary.yaml")
    with pytest.raises(UsageError, match="not valid YAML"):
        read_chain(written(tmp_path, "jobs: \x00"))
