"""Client of Graftwerk, the self-hosted workshop for model weights: `Client` and the `graftwerk` command.

with Client("http://127.0.0.1:8000") as client:
    job = client.merge(base="llama", adapters=["zh"], target="llama-zh").wait(progress=True)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graftwerk.async_client import AsyncClient
    from graftwerk.async_job_handle import AsyncJobHandle
    from graftwerk.client import Client
    from graftwerk.errors import (
        ApiError,
        ClientError,
        JobFailedError,
        UnreachableError,
        UsageError,
        WaitTimeoutError,
    )
    from graftwerk.inference_results import TokenPiece
    from graftwerk.job_handle import JobHandle
    from graftwerk.model_results import ModelSummary
    from graftwerk.models import Delivery, Job, Progress

__all__ = [
    "ApiError",
    "AsyncClient",
    "AsyncJobHandle",
    "Client",
    "ClientError",
    "Delivery",
    "Job",
    "JobFailedError",
    "JobHandle",
    "ModelSummary",
    "Progress",
    "TokenPiece",
    "UnreachableError",
    "UsageError",
    "WaitTimeoutError",
]

_MODULES = {
    "async_client": ("AsyncClient",),
    "async_job_handle": ("AsyncJobHandle",),
    "client": ("Client",),
    "errors": (
        "ApiError",
        "ClientError",
        "JobFailedError",
        "UnreachableError",
        "UsageError",
        "WaitTimeoutError",
    ),
    "inference_results": ("TokenPiece",),
    "job_handle": ("JobHandle",),
    "model_results": ("ModelSummary",),
    "models": ("Delivery", "Job", "Progress"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Returns a public name of the client; its module is imported at the first use, as `graftwerk --version` needs none.

    Raises:
        AttributeError: there is no such name.
    """
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    """Returns the names of the module for editors, those that are not imported yet included."""
    return sorted({*globals(), *__all__})
