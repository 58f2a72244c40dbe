"""Agents for the terminal, untouched: each offers its tools, and prints what the model writes."""

import json
import subprocess
from pathlib import Path

from tests.clients.conftest import MODEL, QUESTION, Service, output_of
from tests.clients.environments import agent


def test_opencode_is_answered(service: Service, tmp_path: Path) -> None:
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "options": {"baseURL": f"{service.url}/v1", "apiKey": "none"},
        "models": {MODEL: {"name": "SmolLM2", "limit": {"context": 8192, "output": 200}}},
    }
    config = {
        "model": f"graftwerk/{MODEL}", "share": "disabled", "autoupdate": False, "provider": {"graftwerk": provider},
    }  # fmt: skip
    (tmp_path / "opencode.json").write_text(json.dumps(config))
    offline = {"OPENCODE_DISABLE_MODELS_FETCH": "1", "OPENCODE_DISABLE_LSP_DOWNLOAD": "1"}
    printed = output_of([agent("opencode"), "run", QUESTION], home=tmp_path, variables=offline)
    check_answer(service, printed, asked_jobs=2, system_characters=5000)


def test_codex_is_answered(service: Service, tmp_path: Path) -> None:
    home = tmp_path / "codex"
    home.mkdir()
    (home / "config.toml").write_text(
        f'model = "{MODEL}"\nmodel_provider = "here"\n[model_providers.here]\nname = "Graftwerk"\n'
        f'base_url = "{service.url}/v1"\nwire_api = "responses"\n'
    )
    command = [agent("codex"), "exec", "--skip-git-repo-check", QUESTION]
    printed = output_of(command, home=tmp_path, variables={"CODEX_HOME": str(home)})
    check_answer(service, printed, asked_jobs=1, system_characters=10_000)


def test_cn_is_answered(service: Service, tmp_path: Path) -> None:
    config = {
        "name": "local", "version": "1.0.0", "schema": "v1",
        "models": [{
            "name": "SmolLM2", "provider": "openai", "model": MODEL, "apiBase": f"{service.url}/v1", "apiKey": "none",
            "roles": ["chat"],
        }],
    }  # fmt: skip
    (tmp_path / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
    quiet = {"CONTINUE_GLOBAL_DIR": str(tmp_path / ".continue"), "CONTINUE_TELEMETRY_ENABLED": "0"}
    command = [agent("cn"), "--config", tmp_path / "config.yaml", "-p", QUESTION]
    check_answer(
        service, output_of(command, home=tmp_path, variables=quiet), asked_jobs=1, system_characters=500
    )


def check_answer(service: Service, printed: str, *, asked_jobs: int, system_characters: int) -> None:
    """Checks that the text of the job with the agent's own instructions was printed; others may be canceled at its end."""
    jobs = service.last_jobs(asked_jobs)
    longest = max(jobs, key=lambda job: len(job["request"]["messages"][0]["content"]))
    assert longest["status"] == "succeeded", longest["error"]
    assert len(longest["request"]["messages"][0]["content"]) > system_characters
    (output,) = longest["result"]["outputs"]
    assert output["finish_reason"] in ("stop", "length")
    assert output["text"].strip() in printed
