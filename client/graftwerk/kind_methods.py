"""A method of the client for each kind of job."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Unpack, cast

from graftwerk import requests
from graftwerk.inference_results import (
    CompareResult,
    EmbedResult,
    GenerateResult,
    PerplexityResult,
    TokenizeResult,
)
from graftwerk.job_handle import JobHandle
from graftwerk.model_results import (
    CombineResult,
    ConvertResult,
    ExtendTokenizerResult,
    ExtractResult,
    ImportResult,
    MergeResult,
    PublishToHubResult,
    VerifyResult,
)
from graftwerk.models import JsonObject, ResultT_co


class KindMethods(ABC):
    """Submission of jobs: a method for each kind, which returns the handle of the queued job.

    The fields of the request are keyword arguments, as the types in `graftwerk.requests` list them, with those of
    `graftwerk.request_parts.JobOptions`. Those that are left out have the service's defaults.

    Raises:
        ApiError: from any method, if the request cannot succeed: nothing is queued then.
    """

    @abstractmethod
    def submit(self, request: JsonObject) -> JobHandle:
        """Submits a request of any kind."""

    def import_(self, **request: Unpack[requests.ImportRequest]) -> JobHandle[ImportResult]:
        """Submits an `import`: files of the volume become a model."""
        return self._submit("import", request, ImportResult)

    def convert(self, **request: Unpack[requests.ConvertRequest]) -> JobHandle[ConvertResult]:
        """Submits a `convert`: a checkpoint of one layout becomes a model of another."""
        return self._submit("convert", request, ConvertResult)

    def merge(self, **request: Unpack[requests.MergeRequest]) -> JobHandle[MergeResult]:
        """Submits a `merge`: adapters are merged into a base model, in order."""
        return self._submit("merge", request, MergeResult)

    def publish_to_hub(
        self, **request: Unpack[requests.PublishToHubRequest]
    ) -> JobHandle[PublishToHubResult]:
        """Submits a `publish-to-hub`: the files of a model become a commit on the Hub."""
        return self._submit("publish-to-hub", request, PublishToHubResult)

    def verify(self, **request: Unpack[requests.VerifyRequest]) -> JobHandle[VerifyResult]:
        """Submits a `verify`: a model is checked against its manifest, or against base and adapters."""
        return self._submit("verify", request, VerifyResult)

    def extend_tokenizer(
        self, **request: Unpack[requests.ExtendTokenizerRequest]
    ) -> JobHandle[ExtendTokenizerResult]:
        """Submits an `extend-tokenizer`: pieces of one vocabulary are appended to another."""
        return self._submit("extend-tokenizer", request, ExtendTokenizerResult)

    def extract(self, **request: Unpack[requests.ExtractRequest]) -> JobHandle[ExtractResult]:
        """Submits an `extract`: the difference of a fine-tuned model and its base becomes a LoRA adapter."""
        return self._submit("extract", request, ExtractResult)

    def combine(self, **request: Unpack[requests.CombineRequest]) -> JobHandle[CombineResult]:
        """Submits a `combine`: several adapters of one base become one adapter."""
        return self._submit("combine", request, CombineResult)

    def generate(self, **request: Unpack[requests.GenerateRequest]) -> JobHandle[GenerateResult]:
        """Submits a `generate`: a model completes prompts or continues a conversation."""
        return self._submit("generate", request, GenerateResult)

    def compare(self, **request: Unpack[requests.CompareRequest]) -> JobHandle[CompareResult]:
        """Submits a `compare`: several models complete the same prompts."""
        return self._submit("compare", request, CompareResult)

    def embed(self, **request: Unpack[requests.EmbedRequest]) -> JobHandle[EmbedResult]:
        """Submits an `embed`: texts become vectors."""
        return self._submit("embed", request, EmbedResult)

    def perplexity(self, **request: Unpack[requests.PerplexityRequest]) -> JobHandle[PerplexityResult]:
        """Submits a `perplexity`: a model scores a text."""
        return self._submit("perplexity", request, PerplexityResult)

    def tokenize(self, **request: Unpack[requests.TokenizeRequest]) -> JobHandle[TokenizeResult]:
        """Submits a `tokenize`: texts become token ids, or token ids texts."""
        return self._submit("tokenize", request, TokenizeResult)

    def _submit(
        self, kind: str, request: Mapping[str, object], _result: type[ResultT_co]
    ) -> JobHandle[ResultT_co]:
        return cast(JobHandle[ResultT_co], self.submit({"kind": kind, **request}))
