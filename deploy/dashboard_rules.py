"""Queries of the Grafana dashboard as Prometheus rules on standard output, so that promtool checks their syntax."""

import json
import sys
from pathlib import Path

import yaml

DASHBOARD = Path(__file__).parent / "grafana-dashboard.json"

VARIABLES = {"$job": "graftwerk", "$__rate_interval": "5m"}


def queries() -> list[str]:
    """Returns the query of each target, with values for Grafana's variables."""
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    return [_filled(target["expr"]) for panel in panels for target in panel["targets"]]


def _filled(query: str) -> str:
    for name, value in VARIABLES.items():
        query = query.replace(name, value)
    return query


def main() -> None:
    """Writes one recording rule for each query."""
    rules = [{"record": f"dashboard:query:{number}", "expr": query} for number, query in enumerate(queries())]
    sys.stdout.write(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))


if __name__ == "__main__":
    main()
