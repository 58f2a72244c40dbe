"""Errors of the Hub's client library as ours."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import httpx
import httpx2
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from services.errors import GraftwerkError, HubGated, HubNotFound, HubUnreachable, InvalidRequest


@dataclass(frozen=True, slots=True)
class Subject:
    """Subject of a question: the repository and revision, and the Hub's address without secrets."""

    repository: str
    revision: str | None
    server: str
    has_token: bool


def _gated(subject: Subject) -> GraftwerkError:
    return HubGated(
        f"{subject.repository!r} is gated on {subject.server}, and "
        + ("the account of GRAFTWERK_HUB_TOKEN has no access." if subject.has_token else "no token is set."),
        "Accept its terms on the Hub's page"
        + ("." if subject.has_token else ", then set GRAFTWERK_HUB_TOKEN for the API and the workers."),
    )


def _no_repository(subject: Subject) -> GraftwerkError:
    return HubNotFound(
        f"{subject.server} has no model repository {subject.repository!r}, or does not show it to this service.",
        "Check the id on the Hub's page. A private repository needs GRAFTWERK_HUB_TOKEN of an account that may read it.",
    )


def _no_revision(subject: Subject) -> GraftwerkError:
    return HubNotFound(
        f"{subject.repository!r} has no revision {subject.revision or 'main'!r} on {subject.server}.",
        "Name a branch, a tag or a commit that its page lists, or leave the revision out.",
    )


def _no_file(subject: Subject) -> GraftwerkError:
    return HubNotFound(
        f"A file that {subject.repository!r} lists is not there on {subject.server}.",
        "The repository may be changing: submit the import again.",
    )


def _disabled(subject: Subject) -> GraftwerkError:
    return HubGated(f"{subject.server} has disabled {subject.repository!r}.", "Its page may say why.")


def _invalid(subject: Subject) -> GraftwerkError:
    return InvalidRequest(
        f"{subject.repository!r} is not an id of a repository.",
        'Write it like "org/name", as on the Hub\'s page.',
    )


def _denied(subject: Subject) -> GraftwerkError:
    return HubGated(
        f"{subject.server} denies access to {subject.repository!r}.",
        "Check that the token of GRAFTWERK_HUB_TOKEN is valid and may do this."
        if subject.has_token
        else "Set GRAFTWERK_HUB_TOKEN for the API and the workers.",
    )


OF_CLASS: Mapping[type[Exception], Callable[[Subject], GraftwerkError]] = {
    GatedRepoError: _gated,  # before its base, RepositoryNotFoundError
    RepositoryNotFoundError: _no_repository,
    RevisionNotFoundError: _no_revision,
    RemoteEntryNotFoundError: _no_file,
    DisabledRepoError: _disabled,
    HFValidationError: _invalid,
}
"""Our error for each class of the library's, in the order in which they are looked for."""

OF_STATUS: Mapping[int, Callable[[Subject], GraftwerkError]] = {
    401: _denied,
    403: _denied,
    404: _no_repository,
}
"""Our error for each status that the library does not refine; all others mean that the Hub has failed."""


def hub_error(error: Exception, subject: Subject) -> GraftwerkError | None:
    """Returns our error for an exception of the library, None for one that is not about the Hub.

    Messages of the library are not passed on: they may hold signed addresses.
    """
    for kind, make in OF_CLASS.items():
        if isinstance(error, kind):
            return make(subject)
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        make_of_status = OF_STATUS.get(status)
        return make_of_status(subject) if make_of_status else unreachable(subject.server, f"status {status}")
    if isinstance(error, OSError | httpx.HTTPError | httpx2.HTTPError):
        return unreachable(subject.server, type(error).__name__)
    if isinstance(error, ValueError | KeyError | TypeError | AttributeError):
        return unreachable(subject.server, "its answer is not of the Hub's API")
    return None


def unreachable(server: str, reason: str) -> HubUnreachable:
    """Returns the error for a Hub that does not answer as it should."""
    return HubUnreachable(
        f"{server} does not answer as a Hub should ({reason}).",
        "Try again later. Check the network of the API and the workers, and HF_ENDPOINT if a mirror is used.",
    )
