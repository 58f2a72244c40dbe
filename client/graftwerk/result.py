"""Parts that results of all kinds share.

The models of results have the field names of the service, which a contract test compares. Fields that this version
does not know are kept.
"""

from pydantic import BaseModel, ConfigDict


class Result(BaseModel):
    """Root of all parts of results."""

    model_config = ConfigDict(extra="allow", frozen=True)


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
