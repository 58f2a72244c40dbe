"""A method of the asynchronous client for each kind of job."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Unpack, cast

from graftwerk import requests
from graftwerk.async_job_handle import AsyncJobHandle
from graftwerk.inference_results import (
    CompareResult,
    EmbedResult,
    GenerateResult,
    PerplexityResult,
    TokenizeResult,
)
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


class AsyncKindMethods(ABC):
    """Submission of jobs: a method for each kind; awaited, it returns the handle of the queued job.

    The fields of the request are keyword arguments, as the types in `graftwerk.requests` list them, with those of
    `graftwerk.request_parts.JobOptions`. Those that are left out have the service's defaults.

    Raises:
        ApiError: from any method, if the request cannot succeed: nothing is queued then.
    """

    @abstractmethod
    async def submit(self, request: JsonObject) -> AsyncJobHandle:
        """Submits a request of any kind."""

    async def import_(self, **request: Unpack[requests.ImportRequest]) -> AsyncJobHandle[ImportResult]:
        """Submits an `import`: files of the volume become a model."""
        return await self._submit("import", request, ImportResult)

    async def convert(self, **request: Unpack[requests.ConvertRequest]) -> AsyncJobHandle[ConvertResult]:
        """Submits a `convert`: a checkpoint of one layout becomes a model of another."""
        return await self._submit("convert", request, ConvertResult)

    async def merge(self, **request: Unpack[requests.MergeRequest]) -> AsyncJobHandle[MergeResult]:
        """Submits a `merge`: adapters are merged into a base model, in order."""
        return await self._submit("merge", request, MergeResult)

    async def publish_to_hub(
        self, **request: Unpack[requests.PublishToHubRequest]
    ) -> AsyncJobHandle[PublishToHubResult]:
        """Submits a `publish-to-hub`: the files of a model become a commit on the Hub."""
        return await self._submit("publish-to-hub", request, PublishToHubResult)

    async def verify(self, **request: Unpack[requests.VerifyRequest]) -> AsyncJobHandle[VerifyResult]:
        """Submits a `verify`: a model is checked against its manifest, or against base and adapters."""
        return await self._submit("verify", request, VerifyResult)

    async def extend_tokenizer(
        self, **request: Unpack[requests.ExtendTokenizerRequest]
    ) -> AsyncJobHandle[ExtendTokenizerResult]:
        """Submits an `extend-tokenizer`: pieces of one vocabulary are appended to another."""
        return await self._submit("extend-tokenizer", request, ExtendTokenizerResult)

    async def extract(self, **request: Unpack[requests.ExtractRequest]) -> AsyncJobHandle[ExtractResult]:
        """Submits an `extract`: the difference of a fine-tuned model and its base becomes a LoRA adapter."""
        return await self._submit("extract", request, ExtractResult)

    async def combine(self, **request: Unpack[requests.CombineRequest]) -> AsyncJobHandle[CombineResult]:
        """Submits a `combine`: several adapters of one base become one adapter."""
        return await self._submit("combine", request, CombineResult)

    async def generate(self, **request: Unpack[requests.GenerateRequest]) -> AsyncJobHandle[GenerateResult]:
        """Submits a `generate`: a model completes prompts or continues a conversation."""
        return await self._submit("generate", request, GenerateResult)

    async def compare(self, **request: Unpack[requests.CompareRequest]) -> AsyncJobHandle[CompareResult]:
        """Submits a `compare`: several models complete the same prompts."""
        return await self._submit("compare", request, CompareResult)

    async def embed(self, **request: Unpack[requests.EmbedRequest]) -> AsyncJobHandle[EmbedResult]:
        """Submits an `embed`: texts become vectors."""
        return await self._submit("embed", request, EmbedResult)

    async def perplexity(
        self, **request: Unpack[requests.PerplexityRequest]
    ) -> AsyncJobHandle[PerplexityResult]:
        """Submits a `perplexity`: a model scores a text."""
        return await self._submit("perplexity", request, PerplexityResult)

    async def tokenize(self, **request: Unpack[requests.TokenizeRequest]) -> AsyncJobHandle[TokenizeResult]:
        """Submits a `tokenize`: texts become token ids, or token ids texts."""
        return await self._submit("tokenize", request, TokenizeResult)

    async def _submit(
        self, kind: str, request: Mapping[str, object], _result: type[ResultT_co]
    ) -> AsyncJobHandle[ResultT_co]:
        return cast(AsyncJobHandle[ResultT_co], await self.submit({"kind": kind, **request}))
