"""`graftwerk serve`: its configuration, its refusals, and the end of its processes with their parent."""

import os
import signal
import socket
import subprocess
import sys
from configparser import RawConfigParser
from pathlib import Path

import pytest
from graftwerk.commands import app
from graftwerk.local_service import failing_programs, lock, tail
from graftwerk.supervisor_config import LocalServiceError, ServiceLocation, environment, write_config
from typer.testing import CliRunner


@pytest.fixture
def location(tmp_path: Path) -> ServiceLocation:
    return ServiceLocation(data_dir=tmp_path, models_dir=tmp_path / "models", port=8123)


def read_config(location: ServiceLocation) -> RawConfigParser:
    config = RawConfigParser()
    config.read(location.data_dir / "supervisord.conf", encoding="utf-8")
    return config


def test_redis_starts_first_and_stops_last_and_keeps_every_write(location: ServiceLocation) -> None:
    write_config(location, 7777)
    config = read_config(location)
    priorities = {name: int(config[name]["priority"]) for name in ("program:redis", "group:service")}
    assert priorities["program:redis"] < priorities["group:service"]
    assert "redis" not in config["group:service"]["programs"]
    command = config["program:redis"]["command"]
    assert (
        "--bind 127.0.0.1 --port 7777 --dir redis --appendonly yes --maxmemory-policy noeviction" in command
    )


def test_every_process_ends_with_its_parent_and_is_restarted(location: ServiceLocation) -> None:
    write_config(location, 7777)
    config = read_config(location)
    programs = [config[name] for name in config.sections() if name.startswith("program:")]
    assert len(programs) == 6
    assert all("-m graftwerk.parent_death" in program["command"] for program in programs)
    assert all(program["autorestart"] == "true" for program in programs)


def test_with_a_redis_url_no_redis_is_started(location: ServiceLocation) -> None:
    write_config(location, None)
    assert "program:redis" not in read_config(location)
    values = environment(location, None, {"GRAFTWERK_REDIS_URL": "redis://elsewhere/1"})
    assert values["GRAFTWERK_REDIS_URL"] == "redis://elsewhere/1"


def test_paths_relative_to_the_commands_folder_are_made_absolute_for_the_processes(
    location: ServiceLocation,
) -> None:
    values = environment(location, 7777, {"GRAFTWERK_API_KEYS_FILE": "keys", "HOME": "/h"})
    assert values["GRAFTWERK_API_KEYS_FILE"] == str(Path("keys").resolve())
    assert values["GRAFTWERK_REDIS_URL"] == "redis://127.0.0.1:7777/0"
    assert (values["GRAFTWERK_PORT"], values["HOME"]) == ("8123", "/h")


def test_a_data_folder_in_use_is_refused(tmp_path: Path) -> None:
    with lock(tmp_path), pytest.raises(LocalServiceError, match="Another `graftwerk serve` runs in"):
        lock(tmp_path)
    lock(tmp_path).close()


def test_a_port_in_use_is_refused_with_a_sentence(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = str(listener.getsockname()[1])
        result = CliRunner().invoke(app, ["serve", "--port", port, "--data-dir", str(tmp_path)])
    assert result.exit_code == 1
    assert f"cannot listen on 127.0.0.1, port {port}" in result.stderr
    assert not (tmp_path / "supervisord.conf").exists()


def test_a_host_beyond_loopback_is_refused_without_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRAFTWERK_API_KEYS_FILE", raising=False)
    result = CliRunner().invoke(app, ["serve", "--host", "0.0.0.0"], env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert "GRAFTWERK_API_KEYS_FILE" in result.stderr


def test_a_program_that_ends_three_times_is_failing(tmp_path: Path) -> None:
    log = tmp_path / "supervisord.log"
    assert failing_programs(log) == []
    line = "2026-01-01 00:00:00,000 WARN exited: {} (exit status 1; not expected)\n"
    log.write_text(line.format("api") * 2 + line.format("redis") * 3, encoding="utf-8")
    assert failing_programs(log) == ["redis"]


def test_the_end_of_a_log_is_shown(tmp_path: Path) -> None:
    log = tmp_path / "api.log"
    assert tail(log).endswith("(empty)")
    log.write_text("one\ntwo\nthree\n", encoding="utf-8")
    assert tail(log, lines=2) == f" The end of {log}:\n  two\n  three"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux signals the death of a parent")
def test_a_process_ends_with_its_parent() -> None:
    parent_code = (
        "import os, subprocess, sys\n"
        "command = [sys.executable, '-m', 'graftwerk.parent_death', 'sh', '-c', 'echo $$; exec sleep 1000']\n"
        "subprocess.Popen(command, stdout=1)\n"
        "os.read(0, 1)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", parent_code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert parent.stdin is not None and parent.stdout is not None
    child = int(parent.stdout.readline())
    os.kill(child, 0)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    # the pipe's only other writer is the child: it is closed when the child is gone
    assert parent.stdout.read() == b""
    parent.stdin.close()
    parent.stdout.close()


def test_parent_death_keeps_the_exit_code_of_the_command() -> None:
    command = [sys.executable, "-m", "graftwerk.parent_death", "--signal", "TERM", "sh", "-c", "exit 7"]
    assert subprocess.run(command, check=False).returncode == 7
