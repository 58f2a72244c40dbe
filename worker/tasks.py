"""The names on the wire: one function a kind, called by RQ with the request as a JSON object."""

from typing import Any

from services.jobs.requests import (
    CompareRequest,
    ConvertRequest,
    EmbedRequest,
    ExtendTokenizerRequest,
    GenerateRequest,
    ImportRequest,
    MergeRequest,
    PerplexityRequest,
    VerifyRequest,
)
from worker.answering import answer_once
from worker.comparing import compare_once
from worker.embedding import embed_once
from worker.lifecycle import run
from worker.making import made_once, make_convert, make_extended_tokenizer, make_import, make_merge
from worker.scoring import score_once
from worker.verifying import verify_once


def import_model(request: dict[str, Any]) -> dict[str, Any]:
    """Takes files from the volume's `incoming/` into the shelf."""
    return run(ImportRequest, request, made_once(make_import))


def convert(request: dict[str, Any]) -> dict[str, Any]:
    """Converts a checkpoint."""
    return run(ConvertRequest, request, made_once(make_convert))


def merge(request: dict[str, Any]) -> dict[str, Any]:
    """Merges adapters into a base."""
    return run(MergeRequest, request, made_once(make_merge))


def verify(request: dict[str, Any]) -> dict[str, Any]:
    """Checks a model against its manifest, or against what it was made of."""
    return run(VerifyRequest, request, verify_once)


def extend_tokenizer(request: dict[str, Any]) -> dict[str, Any]:
    """Appends the pieces of one vocabulary to another."""
    return run(ExtendTokenizerRequest, request, made_once(make_extended_tokenizer))


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
