"""The Python client: one method per kind of job, access to models and jobs.

with Client("http://127.0.0.1:8000") as client:
    job = client.convert(source="llama", target="llama-hf").wait()
"""

import os
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Self, Unpack, cast

import httpx

from graftwerk import requests
from graftwerk.errors import ApiError, UnreachableError
from graftwerk.http import HttpService, model_path
from graftwerk.inference_results import CompareResult, EmbedResult, GenerateResult, PerplexityResult
from graftwerk.job_handle import JobHandle
from graftwerk.local_files import default_name, list_local
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
from graftwerk.models import Job, JsonObject, ResultT_co
from graftwerk.progress_display import transfer_report
from graftwerk.pull import PulledModel, pull
from graftwerk.remote_archive import RemoteArchive
from graftwerk.upload import Uploader
from graftwerk.upload_memory import UploadMemory

DEFAULT_URL = "http://127.0.0.1:8000"


class Client:
    """A service at a URL; a context manager that closes its connections.

    Args:
        url: address of the service; `GRAFTWERK_URL` or http://127.0.0.1:8000 if None.
        api_key: bearer key; `GRAFTWERK_API_KEY` if None.
        transport: transport of httpx, for tests.
        pause: replaces `time.sleep` between two attempts to reach the service.

    Raises:
        ApiError: from any method, if the service refuses the request.
        UnreachableError: from any method, if no Graftwerk service responds at the URL.
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        transport: httpx.BaseTransport | None = None,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._service = HttpService(
            url or os.environ.get("GRAFTWERK_URL") or DEFAULT_URL,
            api_key or os.environ.get("GRAFTWERK_API_KEY"),
            transport=transport,
            pause=pause,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._service.close()

    @property
    def url(self) -> str:
        """Address of the service."""
        return self._service.url

    # ---- one method per kind --------------------------------------------------------------------------

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

    def _submit(
        self, kind: str, request: Mapping[str, object], _result: type[ResultT_co]
    ) -> JobHandle[ResultT_co]:
        return cast(JobHandle[ResultT_co], self.submit({"kind": kind, **request}))

    # ---- jobs -----------------------------------------------------------------------------------------

    def submit(self, request: JsonObject) -> JobHandle:
        """Submits a request of any kind. It carries an idempotency key, so that a resent one queues no second job."""
        headers = {"Idempotency-Key": str(uuid.uuid4())}
        job = self._service.job("POST", "/api/jobs", json=request, headers=headers)
        return JobHandle(self._service, job.id, job)

    def plan(self, request: JsonObject) -> JsonObject:
        """Returns the plan of a request without queueing it: inputs, output, memory, disk, warnings."""
        return self._service.json_object("POST", "/api/jobs", json=request, params={"dry_run": "true"})

    def job(self, job_id: str) -> JobHandle:
        """Returns the handle of a job; its first use requests the job's state."""
        return JobHandle(self._service, job_id)

    def jobs(
        self,
        *,
        kind: str | None = None,
        status: str | None = None,
        model: str | None = None,
        limit: int = 20,
    ) -> list[Job]:
        """Returns up to `limit` jobs, newest first; `model` selects those that read or make it."""
        given = {"kind": kind, "status": status, "model": model, "limit": str(limit)}
        params = {name: value for name, value in given.items() if value is not None}
        return [self._service.as_job(item) for item in self._service.items("/api/jobs", "jobs", params)]

    # ---- models and system ----------------------------------------------------------------------------

    def models(self) -> list[JsonObject]:
        """Returns summaries of all models on the volume."""
        return self._service.items("/api/models", "models", {})

    def model(self, name: str) -> JsonObject:
        """Returns the summary of one model, with its files, lineage and problems."""
        return self._service.json_object("GET", model_path(name))

    def delete_model(self, name: str) -> None:
        """Deletes a model from the volume; refused while a job needs it."""
        self._service.send("DELETE", model_path(name))

    def push(
        self, source: str | Path, name: str | None = None, *, progress: bool = False
    ) -> JobHandle[ImportResult]:
        """Uploads a local folder, file or zip archive and submits its import.

        Chunks that a broken connection lost are sent again; a repeated call continues where an earlier one was killed.

        Args:
            name: name of the new model; by default that of the folder, or of the file without its suffix.
            progress: show the progress of the upload on stderr.

        Raises:
            UsageError: there are no files, or their name cannot name a model.
        """
        target = name or default_name(str(source))
        return self.import_(source={"upload": self.upload(source, target, progress=progress)}, target=target)

    def upload(self, source: str | Path, name: str, *, progress: bool = False) -> list[str]:
        """Uploads the files of a local folder, or a local file, and returns the ids of the uploads, for `import_`.

        Args:
            name: name of the new model, for the display of the progress.

        Raises:
            UsageError: there are no files.
        """
        files = list_local(Path(source))
        with transfer_report("push", name, shown=progress) as report:
            return Uploader(self._service, UploadMemory(self.url), report).upload(files)

    def pull(self, name: str, into: str | Path = ".", *, progress: bool = False) -> PulledModel:
        """Downloads a model into the folder `into/name`, verified against its manifest.

        A broken download is continued; a repeated call continues where an earlier one was killed.

        Args:
            progress: show the progress on stderr.

        Raises:
            UsageError: something of that name is in `into` already.
            ClientError: the model changed meanwhile, or a digest differs.
        """
        with (
            closing(RemoteArchive(self._service, f"{model_path(name)}/archive")) as archive,
            transfer_report("pull", name, shown=progress) as report,
        ):
            return pull(archive, name, Path(into), report)

    def system(self) -> JsonObject:
        """Returns workers, devices, memory and queues of the service."""
        return self._service.json_object("GET", "/api/system")

    def is_ready(self) -> bool:
        """Returns True if Redis, the volume and a worker of each queue respond."""
        try:
            self._service.send("GET", "/readyz")
        except (ApiError, UnreachableError):
            return False
        return True
