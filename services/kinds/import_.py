"""`import`: files of the volume, of a model hub or of uploads become a model."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

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


class HubSource(Source):
    """A repository of a model hub (only where `HUB_ENABLED` is set)."""

    hub: str = Field(pattern=r"^[\w.-]+/[\w.-]+$", examples=["org/name"])
    revision: str | None = None

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
    """Import files as a model: of the volume (a folder, a file or a zip archive), or uploaded ones."""

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


class ImportResult(MadeModel):
    """Counts of what was copied."""

    bytes_written: int
    files: int
