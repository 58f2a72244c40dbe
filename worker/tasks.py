"""The names on the wire: one function a kind, called by RQ with the request as a JSON object."""

from typing import Any

from services.kinds.compare import CompareRequest
from services.kinds.convert import ConvertRequest
from services.kinds.embed import EmbedRequest
from services.kinds.extend_tokenizer import ExtendTokenizerRequest
from services.kinds.generate import GenerateRequest
from services.kinds.import_ import ImportRequest
from services.kinds.merge import MergeRequest
from services.kinds.perplexity import PerplexityRequest
from services.kinds.verify import VerifyRequest
from worker.inference.compare import compare_once
from worker.inference.embed import embed_once
from worker.inference.generate import answer_once
from worker.inference.perplexity import score_once
from worker.lifecycle import run
from worker.models import convert as convert_job
from worker.models import extend_tokenizer as extend_tokenizer_job
from worker.models import import_ as import_job
from worker.models import merge as merge_job
from worker.models import verify as verify_job


def import_model(request: dict[str, Any]) -> dict[str, Any]:
    """Takes files from the volume's `incoming/` into the shelf."""
    return run(ImportRequest, request, import_job.run)


def convert(request: dict[str, Any]) -> dict[str, Any]:
    """Converts a checkpoint."""
    return run(ConvertRequest, request, convert_job.run)


def merge(request: dict[str, Any]) -> dict[str, Any]:
    """Merges adapters into a base."""
    return run(MergeRequest, request, merge_job.run)


def verify(request: dict[str, Any]) -> dict[str, Any]:
    """Checks a model against its manifest, or against what it was made of."""
    return run(VerifyRequest, request, verify_job.run)


def extend_tokenizer(request: dict[str, Any]) -> dict[str, Any]:
    """Appends the pieces of one vocabulary to another."""
    return run(ExtendTokenizerRequest, request, extend_tokenizer_job.run)


def generate(request: dict[str, Any]) -> dict[str, Any]:
    """Answers prompts with a model that is loaded for this job alone.

    The resident worker (`generating.py`) does the same for many of these jobs at once.
    """
    return run(GenerateRequest, request, answer_once)


def compare(request: dict[str, Any]) -> dict[str, Any]:
    """Asks several models the same, each loaded for this job alone, one after another."""
    return run(CompareRequest, request, compare_once)


def embed(request: dict[str, Any]) -> dict[str, Any]:
    """Turns texts into vectors, with a model that is loaded for this job alone."""
    return run(EmbedRequest, request, embed_once)


def perplexity(request: dict[str, Any]) -> dict[str, Any]:
    """Scores a text, with a model that is loaded for this job alone."""
    return run(PerplexityRequest, request, score_once)
