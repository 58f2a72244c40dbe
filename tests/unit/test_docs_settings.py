"""docs/deploy.md and the compose file agree with the class of the settings."""

import re
from pathlib import Path

from services.settings import Settings

ROOT = Path(__file__).parents[2]
DEPLOY = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
COMPOSE = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
ROW = re.compile(r"^\| `(GRAFTWERK_\w+)` \| (?:`([^`]*)`)? ?\| (.+) \|$", re.MULTILINE)
NOT_UNDER_COMPOSE = {"GRAFTWERK_REDIS_URL_FILE"}
"""Settings that the compose file sets itself."""


def environment_names() -> set[str]:
    return {f"GRAFTWERK_{name.upper()}" for name in Settings.model_fields}


def as_environment(value: object) -> str:
    """Returns a default as it is written into the environment; empty without one."""
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)


def only_for_compose() -> dict[str, str]:
    """Returns the defaults of the variables that only the compose file reads."""
    return dict(re.findall(r"\$\{(GRAFTWERK_\w+):-(\w+)\}", COMPOSE))


def test_the_table_has_every_setting_with_its_default_and_description() -> None:
    documented = {name: (default or "", text) for name, default, text in ROW.findall(DEPLOY)}
    for name, field in Settings.model_fields.items():
        assert documented[f"GRAFTWERK_{name.upper()}"] == (as_environment(field.default), field.description)


def test_the_page_documents_only_existing_settings() -> None:
    mentioned = set(re.findall(r"GRAFTWERK_\w+", DEPLOY))
    assert mentioned == environment_names() | set(only_for_compose())


def test_the_page_gives_the_defaults_of_the_compose_file() -> None:
    documented = {name: default for name, default, _ in ROW.findall(DEPLOY)}
    for name, default in only_for_compose().items():
        assert documented[name] == default


def test_the_compose_file_passes_on_every_setting() -> None:
    passed_on = set(re.findall(r"^ +(GRAFTWERK_\w+):", COMPOSE, re.MULTILINE))
    assert passed_on == environment_names() - NOT_UNDER_COMPOSE
