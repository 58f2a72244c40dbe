"""Webhook of a request: the address that receives a message of the end of its job."""

import re
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


def _check_webhook_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        is_valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        is_valid = False
    if not is_valid or not re.fullmatch(r"[!-~]+", url) or "@" in parts.netloc or parts.fragment:
        raise ValueError(
            f'the address of a webhook looks like "https://example.org/hook", without a user or a fragment, not {url!r}'
        )
    return url


class WebhookTarget(BaseModel):
    """Address that receives a message of the end of a job."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: Annotated[
        str, Field(max_length=2048, examples=["https://example.org/hook"]), AfterValidator(_check_webhook_url)
    ]
    events: list[Literal["succeeded", "failed", "canceled"]] = Field(
        default=["succeeded", "failed", "canceled"],
        min_length=1,
        max_length=3,
        description="Ends of the job that it receives.",
    )
