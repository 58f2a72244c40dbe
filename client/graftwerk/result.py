"""Parts that results of all kinds share.

The models of results have the field names of the service, which a contract test compares. Fields that this version
does not know are kept.
"""

from pydantic import BaseModel, ConfigDict

from graftwerk.notebook import html_of


class Result(BaseModel):
    """Root of all parts of results."""

    model_config = ConfigDict(extra="allow", frozen=True)

    def _repr_html_(self) -> str:
        return html_of(type(self).__name__, self.model_dump(mode="json", exclude_unset=True))


class JobResult(Result):
    """Result of a succeeded job; also of a kind that this version does not know."""


class Failure(Result):
    """An error: a stable code, the finding and the remedy."""

    code: str
    message: str
    hint: str = ""


class Usage(Result):
    """Counts of tokens."""

    prompt_tokens: int
    completion_tokens: int = 0
    total_tokens: int
    reasoning_tokens: int | None = None
