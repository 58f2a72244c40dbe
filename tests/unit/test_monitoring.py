"""Alerts and dashboard: they use metrics that exist, in the form that Prometheus and Grafana define.

`make monitoring` has promtool check the rules and the queries of the dashboard.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
from prometheus_client.parser import text_string_to_metric_families

from tests.api_client import client_of

pytestmark = pytest.mark.disable_socket

ROOT = Path(__file__).parents[2]
ALERTS: list[dict[str, Any]] = yaml.safe_load((ROOT / "deploy/prometheus-alerts.yml").read_text())["groups"][
    0
]["rules"]
DASHBOARD: dict[str, Any] = json.loads((ROOT / "deploy/grafana-dashboard.json").read_text())
PAGE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
METRIC = re.compile(r"graftwerk_[a-z_]+")


def metrics(tmp_path: Path) -> dict[str, str]:
    """Names and types of all metrics, those of the samples of counters and histograms included."""
    text = client_of(tmp_path).get("/metrics").text
    found = {}
    for family in text_string_to_metric_families(text):
        suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(
            family.type, ("",)
        )
        found |= {family.name + suffix: family.type for suffix in suffixes}
    return found


def queries() -> list[str]:
    targets = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    return [*targets, *(alert["expr"] for alert in ALERTS)]


def test_alerts_and_dashboard_use_metrics_that_exist(tmp_path: Path) -> None:
    used = {name for query in queries() for name in METRIC.findall(query)}
    assert used - metrics(tmp_path).keys() == set()


def test_the_page_lists_every_metric_and_no_other(tmp_path: Path) -> None:
    listed = set(re.findall(r"^\| `(graftwerk_\w+)`", PAGE, re.MULTILINE))
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in metrics(tmp_path)}
    assert listed == families


def test_every_alert_has_a_severity_and_a_summary_and_is_explained() -> None:
    for alert in ALERTS:
        assert alert["labels"]["severity"] in ("warning", "critical")
        assert alert["annotations"]["summary"]
        assert f"| `{alert['alert']}` |" in PAGE


def test_the_dashboard_has_the_form_of_grafanas_own_models() -> None:
    register_default_plugins()
    read = Dashboard.from_json(DASHBOARD)
    assert lost(DASHBOARD, json.loads(json.dumps(read, cls=JSONEncoder))) == []


def lost(value: Any, read: Any, path: str = "") -> list[str]:
    """Paths of what Grafana's models do not know, or know with another value."""
    if isinstance(value, dict):
        return [one for key, item in value.items() for one in lost(item, read.get(key), f"{path}/{key}")]
    if isinstance(value, list):
        pairs = zip(value, read, strict=True)
        return [one for number, pair in enumerate(pairs) for one in lost(*pair, f"{path}/{number}")]
    return [] if value == read else [path]


def test_panels_have_titles_units_and_room() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["title"] for panel in panels}) == len({panel["id"] for panel in panels}) == len(panels)
    cells: set[tuple[int, int]] = set()
    for panel in panels:
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        x, y, width, height = (panel["gridPos"][name] for name in "xywh")
        covered = {(column, row) for column in range(x, x + width) for row in range(y, y + height)}
        assert x + width <= 24
        assert not covered & cells
        cells |= covered
