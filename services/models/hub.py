"""A model hub: repositories with their files and commits, asked through the Hub's own client library.

Nothing is written to the library's cache: it lists, and `hub_download.py` fetches.
"""

import concurrent.futures
import os
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import TypeVar

import httpx
import httpx2
from huggingface_hub import HfApi, constants, get_hf_file_metadata, hf_hub_url, set_client_factory
from huggingface_hub.hf_api import ModelInfo, RepoSibling
from huggingface_hub.utils.tqdm import disable_progress_bars

from services.errors import (
    GraftwerkError,
    HubDisabled,
    HubFileChanged,
    InvalidName,
)
from services.models.hub_errors import Subject, hub_error, unreachable
from services.models.hub_files import HubFile
from services.models.relative_path import fault_of_path
from services.progress import CheckCanceled, never_canceled
from services.settings import HUB_ENDPOINT, Settings

LIBRARY_NAME = "graftwerk"

SUBMISSION_SECONDS = 5.0
"""Longest time that the API waits for the Hub."""

WORKER_SECONDS = 60.0
"""Longest time that a worker waits for the answer to one question."""

POLL_SECONDS = 0.2
"""Interval of checks for a cancellation during a question."""

SILENCE = httpx2.Timeout(120.0, connect=10.0)
"""Longest silence of a connection of the library, which has no limit of its own."""

FILES_LIMIT = 10_000
"""Largest number of files of a repository: a sharded 70B model has a few hundred."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository at one commit, with all its files."""

    name: str
    revision: str | None
    commit: str
    files: tuple[HubFile, ...]
    gated: bool
    private: bool


@dataclass(frozen=True, slots=True)
class Location:
    """Address from which a file's bytes come, and the headers for it."""

    url: str
    headers: dict[str, str] = field(repr=False)


class Hub:
    """The Hub of the settings.

    Args:
        endpoint: its address.
        token: token of an account, None for public repositories alone.
        enabled: without it every question is refused.
        seconds: longest time that one question may take; that of a submission if None.
        check_canceled: called while it waits.
    """

    def __init__(
        self,
        endpoint: str = HUB_ENDPOINT,
        token: str | None = None,
        *,
        enabled: bool,
        seconds: float | None = None,
        check_canceled: CheckCanceled = never_canceled,
    ) -> None:
        self.endpoint = endpoint
        self.server = re.sub(r"//[^/@]*@", "//", endpoint)
        self.enabled = enabled
        self.seconds = SUBMISSION_SECONDS if seconds is None else seconds
        self.check_canceled = check_canceled
        self._token = token

    @classmethod
    def of(
        cls,
        settings: Settings,
        *,
        seconds: float | None = None,
        check_canceled: CheckCanceled = never_canceled,
    ) -> "Hub":
        """Returns the Hub of the settings."""
        return cls(
            settings.hub_endpoint, settings.hub_secret if settings.hub_enabled else None, enabled=settings.hub_enabled, seconds=seconds,
            check_canceled=check_canceled,
        )  # fmt: skip

    @property
    def has_token(self) -> bool:
        """True if the settings have a token."""
        return self._token is not None

    def api(self) -> HfApi:
        """Returns the library's client. It never looks for a token of its own."""
        _configure_library()
        return HfApi(endpoint=self.endpoint, token=self._token or False, library_name=LIBRARY_NAME)

    def ask(
        self,
        question: Callable[[], T],
        *,
        repository: str = "",
        revision: str | None = None,
        seconds: float | None = None,
    ) -> T:
        """Returns the answer to a question, which runs in a thread of its own so that it can be left behind.

        Args:
            repository: its subject, for messages; `revision` too.
            seconds: longest time for this one.

        Raises:
            HubDisabled: the settings do not allow it.
            HubNotFound, HubGated, InvalidRequest: the Hub refuses.
            HubUnreachable: it does not answer in time, or not as a Hub should.
        """
        self.require_enabled()
        answer = _in_thread(question)
        seconds = self.seconds if seconds is None else seconds
        deadline = time.monotonic() + seconds
        while not answer.done():
            self.check_canceled()
            left = deadline - time.monotonic()
            if left <= 0:
                raise unreachable(self.server, f"no answer within {seconds:g} s")
            concurrent.futures.wait([answer], min(POLL_SECONDS, left))
        error = answer.exception()
        if isinstance(error, Exception) and not isinstance(error, GraftwerkError):
            subject = Subject(repository, revision, self.server, self.has_token)
            raise hub_error(error, subject) or error from error
        return answer.result()

    def require_enabled(self) -> None:
        """Raises HubDisabled if the settings do not allow the Hub."""
        if not self.enabled:
            raise HubDisabled(
                "This service does not read from a model hub: HUB_ENABLED is off.",
                "Set GRAFTWERK_HUB_ENABLED=true for the API and the workers, or put the files into incoming/.",
            )

    def repository(self, name: str, revision: str | None = None) -> Repository:
        """Returns a repository at the commit of a revision, by default of its main branch. Raises what `ask` raises."""
        return self.ask(lambda: self.fetch_repository(name, revision), repository=name, revision=revision)

    def fetch_repository(self, name: str, revision: str | None) -> Repository:
        """Returns what `repository` returns, as a part of a question."""
        info = self.api().model_info(name, revision=revision, files_metadata=True, timeout=self.seconds)
        siblings = info.siblings or []
        if not info.sha or len(siblings) > FILES_LIMIT:
            raise unreachable(self.server, f"no commit, or more than {FILES_LIMIT} files")
        files = tuple(self._file(name, sibling) for sibling in siblings)
        return Repository(name, revision, info.sha, files, bool(info.gated), bool(info.private))

    def _file(self, name: str, sibling: RepoSibling) -> HubFile:
        fault = fault_of_path(sibling.rfilename)
        if fault is not None:
            raise InvalidName(f"{name} lists {sibling.rfilename!r}, {fault}: nothing was fetched.")
        if sibling.size is None or sibling.blob_id is None:
            raise unreachable(self.server, f"it lists {sibling.rfilename} without size and digest")
        if sibling.lfs is not None:
            return HubFile(sibling.rfilename, sibling.lfs["size"], sibling.lfs["sha256"], is_lfs=True)
        return HubFile(sibling.rfilename, sibling.size, sibling.blob_id, is_lfs=False)

    def locate(self, repository: Repository, file: HubFile) -> Location:
        """Returns the address of a file, after a comparison of the commit, size and digest there with the listed ones.

        Raises:
            HubFileChanged: they differ.
            GraftwerkError: as `ask`.
        """
        return self.ask(
            lambda: self.fetch_location(repository, file),
            repository=repository.name,
            revision=repository.commit,
        )

    def fetch_location(self, repository: Repository, file: HubFile) -> Location:
        """Returns what `locate` returns, as a part of a question."""
        _configure_library()
        url = hf_hub_url(repository.name, file.path, revision=repository.commit, endpoint=self.endpoint)
        found = get_hf_file_metadata(
            url,
            token=self._token or False,
            timeout=self.seconds,
            endpoint=self.endpoint,
            library_name=LIBRARY_NAME,
        )
        stated = (
            (found.commit_hash, repository.commit),
            (found.size, file.size_bytes),
            (found.etag, file.etag),
        )
        if any(here not in (None, listed) for here, listed in stated):  # a mirror may leave a header out
            raise HubFileChanged(
                f"{file.path} of {repository.name} is not the file that commit {repository.commit} lists: it has "
                f"{found.size} bytes and the digest {found.etag} at commit {found.commit_hash}; listed are "
                f"{file.size_bytes} bytes and {file.etag}.",
                "Submit the import again: it takes the present commit.",
            )
        return Location(found.location, self._headers_for(found.location))

    def _headers_for(self, url: str) -> dict[str, str]:
        headers = {"Accept-Encoding": "identity", "User-Agent": LIBRARY_NAME}
        if self._token is not None and _origin(url) == _origin(self.endpoint):
            headers["Authorization"] = f"Bearer {self._token}"
        return headers

    def search(self, text: str, limit: int) -> list[ModelInfo]:
        """Returns repositories whose id holds the text, most downloaded first. Raises what `ask` raises."""
        return self.ask(lambda: list(self.api().list_models(search=text, sort="downloads", limit=limit)))


NO_HUB = Hub(enabled=False)
"""Hub of a caller that has no settings: every question is refused."""


@cache
def http_client() -> httpx.Client:
    """Returns the client of this process for contents of files; making one takes 30 ms, for its certificates."""
    return httpx.Client(follow_redirects=True)


os.register_at_fork(after_in_child=http_client.cache_clear)  # two processes must not share a connection


@cache
def _configure_library() -> None:
    """Bounds the silence of the library's connections, and keeps it from a cache outside of the volume and from the screen."""
    set_client_factory(lambda: httpx2.Client(follow_redirects=True, timeout=SILENCE))
    constants.HF_HUB_DISABLE_XET = True
    disable_progress_bars()


def _origin(url: str) -> tuple[str, str, int | None]:
    parsed = httpx.URL(url)
    return parsed.scheme, parsed.host, parsed.port


def _in_thread(question: Callable[[], T]) -> "concurrent.futures.Future[T]":
    answer: concurrent.futures.Future[T] = concurrent.futures.Future()

    def run() -> None:
        try:
            answer.set_result(question())
        except Exception as error:  # noqa: BLE001  (the asking thread raises it)
            answer.set_exception(error)

    threading.Thread(target=run, name="hub", daemon=True).start()
    return answer
