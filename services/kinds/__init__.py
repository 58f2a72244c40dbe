"""Kinds of job: what may be asked, what is returned and which queue runs it. One table, one file per kind.

Adding a kind: its request and result in a file here, a row in `KINDS`, `services/preflight/<kind>.py`, a file in
`worker/models/` or `worker/inference/`, a command of the client and a docs page. The API parses a request with these
models, the queue carries it as JSON, and the worker parses it again.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

from pydantic import AfterValidator, Field, TypeAdapter

from services.kinds.combine import CombineRequest, CombineResult
from services.kinds.compare import CompareRequest, CompareResult
from services.kinds.convert import ConvertRequest, ConvertResult
from services.kinds.embed import EmbedRequest, EmbedResult
from services.kinds.extend_tokenizer import ExtendTokenizerRequest, ExtendTokenizerResult
from services.kinds.extract import ExtractRequest, ExtractResult
from services.kinds.generate import GenerateRequest, GenerateResult
from services.kinds.import_ import ImportRequest, ImportResult
from services.kinds.merge import MergeRequest, MergeResult
from services.kinds.perplexity import PerplexityRequest, PerplexityResult
from services.kinds.publish_to_hub import PublishToHubRequest, PublishToHubResult
from services.kinds.shared import JobRequest as JobRequest
from services.kinds.shared import JobResult as JobResult
from services.kinds.tokenize import TokenizeRequest, TokenizeResult
from services.kinds.verify import VerifyRequest, VerifyResult

QueueName = Literal["convert", "merge", "generate"]

QUEUES: tuple[QueueName, ...] = ("convert", "merge", "generate")
"""Each queue has its own kind of worker: only a worker of a single queue never loses a job between two lists."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """One kind of job: its request, its result and the queue whose workers run it."""

    request: type[JobRequest]
    result: type[JobResult]
    queue: QueueName


KINDS: Mapping[str, Kind] = {
    "import": Kind(request=ImportRequest, result=ImportResult, queue="convert"),
    "convert": Kind(request=ConvertRequest, result=ConvertResult, queue="convert"),
    "merge": Kind(request=MergeRequest, result=MergeResult, queue="merge"),
    "generate": Kind(request=GenerateRequest, result=GenerateResult, queue="generate"),
    "compare": Kind(request=CompareRequest, result=CompareResult, queue="generate"),
    "embed": Kind(request=EmbedRequest, result=EmbedResult, queue="generate"),
    "perplexity": Kind(request=PerplexityRequest, result=PerplexityResult, queue="generate"),
    "tokenize": Kind(request=TokenizeRequest, result=TokenizeResult, queue="generate"),
    "extend-tokenizer": Kind(request=ExtendTokenizerRequest, result=ExtendTokenizerResult, queue="convert"),
    "extract": Kind(request=ExtractRequest, result=ExtractResult, queue="merge"),
    "publish-to-hub": Kind(request=PublishToHubRequest, result=PublishToHubResult, queue="convert"),
    "combine": Kind(request=CombineRequest, result=CombineResult, queue="merge"),
    "verify": Kind(request=VerifyRequest, result=VerifyResult, queue="merge"),
}


def module_name(kind: str) -> str:
    """Returns the module name of a kind, the same in every package: `import` is a keyword and becomes `import_`."""
    return "import_" if kind == "import" else kind.replace("-", "_")


def _check_kind(kind: str) -> str:
    if kind not in KINDS:
        raise ValueError(f"{kind!r} is not a kind of job; there are {', '.join(KINDS)}")
    return kind


JobKind = Annotated[str, AfterValidator(_check_kind), Field(json_schema_extra={"enum": list(KINDS)})]

if TYPE_CHECKING:
    AnyRequest = JobRequest
else:
    AnyRequest = Annotated[
        Union[tuple(kind.request for kind in KINDS.values())], Field(discriminator="kind")  # noqa: UP007
    ]
"""A request of any kind, selected by its `kind`; statically the part that all kinds share."""

ANY_REQUEST: TypeAdapter[AnyRequest] = TypeAdapter(AnyRequest)


def parse_request(value: Any) -> JobRequest:
    """Returns the request in a JSON object.

    Raises:
        pydantic.ValidationError: it is not a request of a known kind.
    """
    return ANY_REQUEST.validate_python(value)


def parse_result(kind: str, value: Any) -> JobResult:
    """Returns the result of a job of this kind from its JSON object."""
    return KINDS[kind].result.model_validate(value)
