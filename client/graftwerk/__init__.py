"""Client of Graftwerk, the self-hosted workshop for model weights: `Client` and the `graftwerk` command.

with Client("http://127.0.0.1:8000") as client:
    job = client.merge(base="llama", adapters=["zh"], target="llama-zh").wait(progress=True)
"""

from graftwerk.client import Client
from graftwerk.errors import ApiError, ClientError, UnreachableError, UsageError, WaitTimeoutError
from graftwerk.inference_results import TokenPiece
from graftwerk.job_handle import JobHandle
from graftwerk.models import Delivery, Job, Progress

__all__ = [
    "ApiError",
    "Client",
    "ClientError",
    "Delivery",
    "Job",
    "JobHandle",
    "Progress",
    "TokenPiece",
    "UnreachableError",
    "UsageError",
    "WaitTimeoutError",
]
