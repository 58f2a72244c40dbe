"""`extend-tokenizer`: a SentencePiece vocabulary is extended and published as a tokenizer."""

from services.files.json_file import write_json
from services.kinds.extend_tokenizer import ExtendTokenizerRequest, ExtendTokenizerResult
from services.models.digests import digest_file
from services.models.manifest import InputEntry, new_manifest
from services.preflight.extend_tokenizer import tokenizer_file
from services.progress import Progress
from services.tokenizers import complete_tokenizer
from services.tokenizers.extend import extend_vocabulary, sample_tokenizations
from worker.lifecycle import JobContext
from worker.models.publish import idempotent, made_result, planned, publishing, write_description


@idempotent(ExtendTokenizerResult)
def run(request: ExtendTokenizerRequest, context: JobContext) -> ExtendTokenizerResult:
    """Extends a vocabulary and publishes it with the files that transformers reads."""
    plan = planned(request, context)
    names = {"base": request.base, "addition": request.addition}
    sources = {role: tokenizer_file(context.store.path(name)) for role, name in names.items()}
    with publishing(request, plan, context) as staging:
        base = sources["base"].read_bytes()
        extended = extend_vocabulary(base, sources["addition"].read_bytes(), pad_token=request.pad_token)
        (staging / "tokenizer.model").write_bytes(extended.model)
        context.execution.report(
            Progress("extending the vocabulary", extended.added, extended.added, "pieces")
        )
        context.execution.check_canceled()
        if request.pad_token is not None:
            write_json(staging / "special_tokens_map.json", {"pad_token": request.pad_token})
        tokenizer = complete_tokenizer(staging)
        files = {path.name: digest_file(path) for path in sorted(staging.iterdir())}
        figures = {
            "counts": extended.counts, "sha256": files["tokenizer.model"],
            "samples": sample_tokenizations(base, extended.model), "tokenizer_parity": tokenizer.parity,
        }  # fmt: skip
        inputs = [
            InputEntry(role=role, name=name, digest=digest_file(sources[role]))
            for role, name in names.items()
        ]
        manifest = new_manifest(
            kind="tokenizer", operation=request.kind, inputs=inputs, tensors={}, files=files, job_id=context.execution.job_id,
            options={"pad_token": request.pad_token}, warnings=[*plan.warnings, *tokenizer.warnings], result=figures,
        )  # fmt: skip
        write_description(staging, manifest, context)
    return made_result(ExtendTokenizerResult, request, context, manifest)
