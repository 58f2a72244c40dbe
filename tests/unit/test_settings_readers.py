"""Every setting is read by the service or by the client: one that nothing reads does not exist."""

import ast
from pathlib import Path

from services.settings import Settings

ROOT = Path(__file__).parents[2]


def attributes_read() -> set[str]:
    """Returns the names of all attributes that the code reads, including those of `Settings` itself."""
    files = [
        path for package in ("api", "worker", "services", "client") for path in (ROOT / package).rglob("*.py")
    ]
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in files]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    return {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)}


def test_each_setting_has_a_reader() -> None:
    assert set(Settings.model_fields) - attributes_read() == set()
