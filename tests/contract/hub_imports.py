"""Imports of a repository of the local hub, as the worker runs them."""

from pathlib import Path
from typing import Any

from services.kinds.import_ import ImportRequest
from tests.contract.hub_child import hub_context
from tests.hub_server import HubServer
from worker.models import import_


def asked(target: str = "taken", *, sha256: dict[str, str] | None = None, **source: Any) -> dict[str, Any]:
    return {
        "kind": "import",
        "source": {"hub": "org/name", **source},
        "target": target,
        "sha256": sha256 or {},
    }


def run(volume: Path, hub: HubServer, request: dict[str, Any] | None = None, **more: Any) -> Any:
    return import_.run(ImportRequest.model_validate(request or asked()), hub_context(volume, hub.url, **more))
