"""The service's distribution, `graftwerk-service`: found by its metadata, since this client may be installed alone."""

import json
from importlib.metadata import Distribution, distributions
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

from graftwerk.errors import ClientError

DISTRIBUTION = "graftwerk-service"
MODULES = {"gunicorn": "api", "torch": "worker", "supervisor": "embedded"}
"""A module that each extra of the distribution installs."""
INSTALL_HINT = (
    "Install it from a checkout of Graftwerk: `make serve` and `make demo` set everything up, or run "
    "`pip install -e '.[api,worker,embedded]'` there. To use a service that runs elsewhere, set GRAFTWERK_URL."
)


class ServiceNotInstalledError(ClientError):
    """The service is not installed in this environment, or not completely."""


def require_service() -> None:
    """Checks that the processes of the service can be started from this environment.

    Raises:
        ServiceNotInstalledError: `graftwerk-service` or one of its extras is missing.
    """
    if not any(distributions(name=DISTRIBUTION)):
        raise ServiceNotInstalledError(
            f"This command starts the service, but its distribution {DISTRIBUTION} is not installed here.",
            INSTALL_HINT,
        )
    missing = [extra for module, extra in MODULES.items() if find_spec(module) is None]
    if missing:
        raise ServiceNotInstalledError(
            f"The distribution {DISTRIBUTION} is installed without its extras {', '.join(missing)}.",
            INSTALL_HINT,
        )


def checkout_folder() -> Path | None:
    """Returns the folder of the checkout that the service is installed from; None if it is installed as a copy."""
    folders = (_source_folder(found) for found in distributions(name=DISTRIBUTION))
    return next((folder for folder in folders if folder is not None), None)


def _source_folder(found: Distribution) -> Path | None:
    origin = json.loads(found.read_text("direct_url.json") or "{}")
    if origin.get("dir_info", {}).get("editable"):
        return Path(unquote(urlsplit(origin["url"]).path))
    return None
