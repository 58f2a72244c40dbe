"""Uploads of local files to a service and downloads of models, with their progress on stderr."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from graftwerk.calls import model_path
from graftwerk.http import HttpService
from graftwerk.local_files import list_local
from graftwerk.models import Progress
from graftwerk.progress_display import transfer_report
from graftwerk.pull import PulledModel, pull
from graftwerk.remote_archive import RemoteArchive
from graftwerk.upload import Uploader
from graftwerk.upload_memory import UploadMemory

Report = Callable[[Progress], None]


class Transfers:
    """Transfers between local folders and a service.

    Args:
        service: connections to the service.
        checkpoint: called after each block; an error that it raises ends the transfer.
    """

    def __init__(self, service: HttpService, checkpoint: Callable[[], None] = lambda: None) -> None:
        self._service = service
        self._checkpoint = checkpoint

    def upload(self, source: Path, name: str, *, progress: bool) -> list[str]:
        """Uploads a folder or file and returns the ids of the uploads; `name` is shown with the progress."""
        files = list_local(source)
        with transfer_report("push", name, shown=progress) as report:
            memory = UploadMemory(self._service.url)
            return Uploader(self._service, memory, self._checked(report)).upload(files)

    def pull(self, name: str, into: Path, *, progress: bool) -> PulledModel:
        """Downloads a model into the folder `into/name`."""
        with (
            closing(RemoteArchive(self._service, f"{model_path(name)}/archive")) as archive,
            transfer_report("pull", name, shown=progress) as report,
        ):
            return pull(archive, name, into, self._checked(report))

    def _checked(self, report: Report) -> Report:
        def run(progress: Progress) -> None:
            self._checkpoint()
            report(progress)

        return run
