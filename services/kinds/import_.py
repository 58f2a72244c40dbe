"""`import`: files of the volume, of a model hub or of uploads become a model."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field

from services.kinds.made_model import MadeModel
from services.kinds.shared import MakeRequest, Sha256, Shape


class Source(Shape):
    """Root of all sources of an import."""

    @property
    def name(self) -> str:
        """Path or address of the source, as messages and manifests name it."""
        raise NotImplementedError


class PathSource(Source):
    """A file or folder on the volume, under `incoming/`."""

    path: str = Field(min_length=1, max_length=1024, examples=["incoming/llama"])

    @property
    def name(self) -> str:
        """The path."""
        return self.path


class ZipSource(Source):
    """A zip archive on the volume, under `incoming/`."""

    zip: str = Field(min_length=1, max_length=1024, examples=["incoming/chinese-llama-lora.zip"])

    @property
    def name(self) -> str:
        """The path of the archive."""
        return self.zip


PART = "[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?"
"""Either half of an id of the Hub."""


def _check_repository(name: str) -> str:
    if "--" in name or ".." in name or name.endswith(".git"):
        raise ValueError('an id of the Hub looks like "org/name", without "--", ".." and ".git"')
    return name


Repository = Annotated[
    str,
    Field(pattern=f"^{PART}/{PART}$", max_length=193, examples=["org/name"]),
    AfterValidator(_check_repository),
]
"""Id of a repository of the Hub: an organization or a person, and a name."""

Revision = Annotated[str, Field(pattern=r"^[^\s?#%\\]{1,255}$", examples=["main"])]
FilePattern = Annotated[str, Field(min_length=1, max_length=255, examples=["*.safetensors"])]


class HubSource(Source):
    """A repository of a model hub (only where `HUB_ENABLED` is set)."""

    hub: Repository
    revision: Revision | None = Field(
        default=None, description="A branch, a tag or a commit; null: the main branch."
    )
    files: list[FilePattern] | None = Field(
        default=None,
        min_length=1,
        max_length=64,
        description="Shell patterns of the files to fetch; null: what the repository's one model needs.",
    )

    @property
    def name(self) -> str:
        """The repository, with the revision if there is one."""
        return self.hub if self.revision is None else f"{self.hub}@{self.revision}"


class UploadSource(Source):
    """Finished uploads: together they make one folder; a single zip archive is unpacked."""

    upload: list[Annotated[str, Field(min_length=1, max_length=255)]] = Field(
        min_length=1,
        max_length=10_000,
        description="Ids of uploads, as their address ends with.",
        examples=[["0a1b2c3d4e5f60718293a4b5c6d7e8f9"]],
    )

    @property
    def name(self) -> str:
        """Count of the uploads: their ids mean nothing once they are published."""
        return "1 upload" if len(self.upload) == 1 else f"{len(self.upload)} uploads"


class ImportRequest(MakeRequest):
    """Import files as a model: of the volume (a folder, a file or a zip archive), of a model hub, or uploaded ones."""

    example: ClassVar[dict[str, Any]] = {
        "summary": "Import a folder of the volume as a model",
        "value": {"kind": "import", "source": {"path": "incoming/llama"}, "target": "llama-7b-original"},
    }

    kind: Literal["import"]
    source: PathSource | ZipSource | HubSource | UploadSource
    sha256: dict[str, Sha256] = Field(default={}, description="Digests to check, by path inside the source.")

    @property
    def uploads(self) -> list[str]:
        """Ids of the uploads of its source."""
        return self.source.upload if isinstance(self.source, UploadSource) else []

    @property
    def asks_hub(self) -> bool:
        """True for a repository of the Hub."""
        return isinstance(self.source, HubSource)


class ImportResult(MadeModel):
    """Counts of what was copied."""

    bytes_written: int
    files: int
