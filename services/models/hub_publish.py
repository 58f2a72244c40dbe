"""Upload of files to a repository of the Hub, as one commit."""

import io
import math
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from huggingface_hub import CommitOperationAdd
from huggingface_hub.errors import RepositoryNotFoundError

from services.errors import HubDisabled, InvalidRequest, JobCanceled
from services.models.hub import Hub
from services.models.imports import Member
from services.progress import Progress, Report, ignore_progress


@dataclass(frozen=True, slots=True)
class Published:
    """The commit and the address of the repository."""

    commit: str
    url: str


def check_repository(hub: Hub, name: str, *, private: bool) -> None:
    """Checks that a repository may be written: there is a token, and none that exists is public against the request.

    Raises:
        HubDisabled: the Hub is off, or there is no token.
        InvalidRequest: it exists and is public.
        GraftwerkError: as `Hub.ask`.
    """
    require_token(hub)
    is_public = hub.ask(lambda: _is_public(hub, name), repository=name)
    if private and is_public:
        raise InvalidRequest(
            f"{name} exists on {hub.server} and is public; the request says private.",
            "Choose another repository, make that one private, or set `private` to false.",
        )


def require_token(hub: Hub) -> None:
    """Raises HubDisabled if the Hub is off or the settings have no token."""
    hub.require_enabled()
    if not hub.has_token:
        raise HubDisabled(
            "Uploads to the Hub need a token, and GRAFTWERK_HUB_TOKEN is not set.",
            "Set it for the API and the workers to a token that may write to the repository.",
        )


def _is_public(hub: Hub, name: str) -> bool:
    try:
        return not hub.api().model_info(name, timeout=hub.seconds).private
    except RepositoryNotFoundError:
        return False


@dataclass(slots=True)
class Upload:
    """Upload of files to the repository `name`."""

    hub: Hub
    name: str
    files: Sequence[Member]
    private: bool
    report: Report = ignore_progress
    _ended: threading.Event = field(default_factory=threading.Event, init=False)

    def run(self, message: str) -> Published:
        """Creates the repository if it is not there, and adds the files in one commit.

        Raises:
            GraftwerkError: as `check_repository` and `Hub.ask`.
        """
        self.hub.ask(
            lambda: self.hub.api().create_repo(self.name, private=self.private, exist_ok=True),
            repository=self.name,
        )
        check_repository(self.hub, self.name, private=self.private)
        try:
            return self.hub.ask(lambda: self._commit(message), repository=self.name, seconds=math.inf)
        finally:
            self._ended.set()  # a thread that was left behind stops at its next read

    def _commit(self, message: str) -> Published:
        with ExitStack() as opened:
            digesting = _Account(self, "digesting files")
            sources = [opened.enter_context(_CountedFile(member, digesting)) for member in self.files]
            additions = [
                CommitOperationAdd(str(member.path), source)  # reads the file for its digest
                for member, source in zip(self.files, sources, strict=True)
            ]
            uploading = _Account(self, "uploading")
            for source in sources:
                source.account = uploading
            try:
                done = self.hub.api().create_commit(self.name, additions, commit_message=message)
            except RuntimeError as error:  # the library's wrapper of an error in one of its threads
                raise error.__cause__ or error from error
        return Published(done.oid, f"{self.hub.server}/{self.name}")

    def check_ended(self) -> None:
        """Raises JobCanceled in a thread that was left behind."""
        if self._ended.is_set():
            raise JobCanceled("The upload was left behind.")


class _Account:
    """Bytes of all files that one stage has passed; a file that is read again counts once."""

    def __init__(self, upload: Upload, stage: str) -> None:
        self._upload, self._stage = upload, stage
        self._total = sum(member.size_bytes for member in upload.files)
        self._positions: dict[str, int] = {}
        self._lock = threading.Lock()  # the library reads files in several threads

    def reach(self, name: str, position: int) -> None:
        self._upload.check_ended()
        with self._lock:
            self._upload.hub.check_canceled()
            self._positions[name] = max(position, self._positions.get(name, 0))
            self._upload.report(Progress(self._stage, sum(self._positions.values()), self._total))


class _CountedFile(io.BufferedReader):
    """A file whose reads are counted by `account`."""

    def __init__(self, member: Member, account: _Account) -> None:
        super().__init__(io.FileIO(member.source))
        self.account = account
        self._name = str(member.path)

    def read(self, size: int | None = -1, /) -> bytes:
        """Reads bytes and counts them."""
        found = super().read(size)
        self.account.reach(self._name, self.tell())
        return found
