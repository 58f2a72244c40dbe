"""List of `incoming/`: what an import can take, without links, within limits."""

import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest

from services.errors import GraftwerkError, NotReady, ReadLimitExceeded
from services.isolation.limits import LimitExceeded
from services.models import incoming
from services.models.incoming import kind_of_names, list_incoming
from services.models.store import ModelStore
from services.models.summary import kind_of_folder
from services.preflight.incoming_reader import read_incoming
from tests.api_client import client_of, problem
from tests.miniature import MINIATURE

pytestmark = pytest.mark.disable_socket


def write(root: Path, path: str, content: str = "x", modified: int = 1_700_000_000) -> Path:
    file = root / "incoming" / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content)
    os.utime(file, (modified, modified))
    return file


def listed(root: Path) -> list[tuple[str, str, str]]:
    found = list_incoming(root, unpack_limit_bytes=10**9)
    assert not found.truncated
    return [(entry.path, entry.kind, entry.looks_like) for entry in found.entries]


def test_models_are_one_entry_and_other_folders_are_followed(tmp_path: Path) -> None:
    for path in (
        "llama/params.json", "llama/consolidated.00.pth", "stack/zh/adapter_config.json", "stack/zh/adapter_model.bin",
        "stack/deep/hf/config.json", "q.gguf", "prompts.txt", "vocab/tokenizer.model",
    ):  # fmt: skip
        write(tmp_path, path)
    assert listed(tmp_path) == [
        ("incoming/llama", "folder", "original"),
        ("incoming/prompts.txt", "file", "unknown"),
        ("incoming/q.gguf", "file", "gguf"),
        ("incoming/stack", "folder", "unknown"),
        ("incoming/stack/deep", "folder", "unknown"),
        ("incoming/stack/deep/hf", "folder", "huggingface"),
        ("incoming/stack/zh", "folder", "adapter"),
        ("incoming/vocab", "folder", "tokenizer"),
        ("incoming/vocab/tokenizer.model", "file", "tokenizer"),
    ]


def test_several_checkpoints_in_a_folder_are_entries_of_their_own(tmp_path: Path) -> None:
    for path in ("llama/7B/consolidated.00.pth", "llama/13B/consolidated.00.pth", "llama/tokenizer.model"):
        write(tmp_path, path)
    assert [path for path, _, kind in listed(tmp_path) if kind == "original"] == [
        "incoming/llama/13B",
        "incoming/llama/7B",
    ]


def test_a_folder_has_the_size_of_its_files_and_the_time_of_the_newest(tmp_path: Path) -> None:
    write(tmp_path, "zh/adapter_config.json", "12345", 1_700_000_000)
    write(tmp_path, "zh/more/weights", "123", 1_700_000_060)
    (entry,) = list_incoming(tmp_path, unpack_limit_bytes=1).entries
    assert entry.size_bytes == 8
    assert entry.modified_at.isoformat() == "2023-11-14T22:14:20+00:00"


def test_archives_are_recognized_by_their_names_and_refused_ones_say_why(tmp_path: Path) -> None:
    (tmp_path / "incoming").mkdir()
    shutil.copy(MINIATURE / "chinese-llama-lora.zip", tmp_path / "incoming")
    write(tmp_path, "broken.zip", "PK")
    with zipfile.ZipFile(tmp_path / "incoming" / "escaping.zip", "w") as archive:
        archive.writestr("../config.json", "{}")
    found = {entry.path: entry for entry in list_incoming(tmp_path, unpack_limit_bytes=10**9).entries}
    assert {entry.kind for entry in found.values()} == {"zip"}
    assert found["incoming/chinese-llama-lora.zip"].looks_like == "adapter"
    assert found["incoming/chinese-llama-lora.zip"].problem is None
    assert "not a readable zip archive" in (found["incoming/broken.zip"].problem or "")
    assert "nothing was unpacked" in (found["incoming/escaping.zip"].problem or "")


def test_archives_are_not_read_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "incoming").mkdir()
    shutil.copy(MINIATURE / "chinese-llama-lora.zip", tmp_path / "incoming")
    monkeypatch.setattr(incoming, "ARCHIVES_SECONDS", -1)
    (entry,) = list_incoming(tmp_path, unpack_limit_bytes=10**9).entries
    assert (entry.kind, entry.looks_like, entry.problem) == ("zip", "unknown", None)


def test_links_pipes_and_junk_are_left_out(tmp_path: Path) -> None:
    outside = tmp_path / "secret"
    outside.mkdir()
    (outside / "config.json").write_text("{}")
    base = write(tmp_path, "a.txt").parent
    (base / "folder").symlink_to(outside)
    (base / "file").symlink_to(outside / "config.json")
    (base / "loop").symlink_to(base)
    os.mkfifo(base / "pipe")
    write(tmp_path, "__MACOSX/x")
    write(tmp_path, ".DS_Store")
    assert listed(tmp_path) == [("incoming/a.txt", "file", "unknown")]


def test_a_name_that_json_cannot_hold_is_a_problem(tmp_path: Path) -> None:
    write(tmp_path, os.fsdecode(b"caf\xe9.txt"))
    (entry,) = list_incoming(tmp_path, unpack_limit_bytes=1).entries
    assert entry.path == r"incoming/caf\xe9.txt"
    assert entry.problem is not None


@pytest.mark.parametrize(
    ("limit", "value", "entries"), [("FILES_LIMIT", 4, 4), ("ENTRIES_LIMIT", 3, 3), ("DEPTH_LIMIT", 0, 5)]
)
def test_a_list_within_its_limits_says_that_there_is_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: int, entries: int
) -> None:
    for name in "abcde":
        write(tmp_path, f"{name}.txt")
    write(tmp_path, "z/deep.txt")
    assert not list_incoming(tmp_path, unpack_limit_bytes=1).truncated
    monkeypatch.setattr(incoming, limit, value)
    found = list_incoming(tmp_path, unpack_limit_bytes=1)
    assert found.truncated
    assert len(found.entries) <= entries


def test_without_the_folder_there_is_nothing(tmp_path: Path) -> None:
    assert listed(tmp_path) == []


@pytest.mark.parametrize(
    "paths",
    [
        ["adapter_config.json", "config.json"], ["adapter_model.safetensors"], ["consolidated.00.pth", "config.json"],
        ["config.json", "original/consolidated.00.pth"], ["7B/consolidated.00.pth", "tokenizer.model"],
        ["7B/consolidated.00.pth", "13B/consolidated.00.pth"], ["a/b/consolidated.00.pth"], ["x.gguf", "tokenizer.json"],
        ["tokenizer.json"], ["spm.model"], ["sub/config.json"], ["readme.md"], ["sub/x.gguf"],
    ],
)  # fmt: skip
def test_names_and_folders_are_recognized_alike(tmp_path: Path, paths: list[str]) -> None:
    for path in paths:
        write(tmp_path, path)
    try:
        expected: str = kind_of_folder(tmp_path / "incoming")
    except GraftwerkError:
        expected = "unknown"
    assert kind_of_names(paths) == expected


def test_the_api_returns_sources_that_an_import_accepts(tmp_path: Path) -> None:
    shutil.copytree(MINIATURE / "llama", tmp_path / "incoming" / "llama")
    shutil.copy(MINIATURE / "chinese-llama-lora.zip", tmp_path / "incoming")
    client = client_of(tmp_path)
    found = client.get("/api/incoming").get_json()
    assert found["truncated"] is False
    assert [(entry["path"], entry["looks_like"]) for entry in found["entries"]] == [
        ("incoming/chinese-llama-lora.zip", "adapter"),
        ("incoming/llama", "original"),
    ]
    for number, entry in enumerate(found["entries"]):
        source = {"zip" if entry["kind"] == "zip" else "path": entry["path"]}
        body = {"kind": "import", "source": source, "target": f"m{number}"}
        plan = client.post("/api/jobs?dry_run=true", json=body).get_json()
        assert plan["output_bytes"] > 0


def test_a_volume_that_is_away_is_503(tmp_path: Path) -> None:
    client = client_of(tmp_path / "models")
    assert client.get("/api/incoming").status_code == 200
    (tmp_path / "models").rename(tmp_path / "away")
    problem(client.get("/api/incoming"), 503, "volume_unavailable")


@pytest.mark.parametrize(
    ("limit", "error"), [("60 s", NotReady), ("10 s of processor time", ReadLimitExceeded)]
)
def test_a_reader_that_is_stopped_is_an_error(
    tmp_path: Path, limit: str, error: type[GraftwerkError]
) -> None:
    class Stopped:
        def call(self, request: Any) -> Any:
            raise LimitExceeded(limit)

    with pytest.raises(error, match="Listing incoming/ took"):
        read_incoming(ModelStore(tmp_path), Stopped(), unpack_limit_bytes=1)  # type: ignore[arg-type]
