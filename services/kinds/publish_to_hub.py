"""`publish-to-hub`: the files of a model become a commit of a repository on the Hub."""

from typing import Any, ClassVar, Literal

from pydantic import Field

from services.kinds.import_ import Repository
from services.kinds.shared import JobRequest, JobResult, ModelName


class PublishToHubRequest(JobRequest):
    """Upload a model to a repository of the Hub, which is created if it is not there."""

    example: ClassVar[dict[str, Any]] = {
        "summary": "Upload a merged model to a private repository",
        "value": {
            "kind": "publish-to-hub",
            "model": "chinese-alpaca-7b",
            "repository": "org/chinese-alpaca-7b",
        },
    }

    kind: Literal["publish-to-hub"]
    model: ModelName
    repository: Repository
    private: bool = Field(
        default=True, description="A repository that exists must be private too, unless this is false."
    )

    @property
    def reads(self) -> list[str]:
        """The model."""
        return [self.model]

    @property
    def asks_hub(self) -> bool:
        """True: the repository may exist."""
        return True


class PublishToHubResult(JobResult):
    """The commit, and counts of the files in it."""

    commit: str
    repository: str
    url: str
    private: bool
    files: int
    size_bytes: int
