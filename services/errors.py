"""Every error that Graftwerk raises on purpose: one flat tree, each class with a stable code.

A message says what was found and what was needed, with names and numbers; a hint says what to do.
Services raise these, the doors translate them: `api/errors.py` into a status, `worker/lifecycle.py` into
the job's record. `docs/errors.md` lists the codes.
"""

from typing import ClassVar


class GraftwerkError(Exception):
    """The root: an error with a stable `code`, a `message` for people and a `hint` on what to do.

    `transient` says whether the same request may succeed when it is tried again unchanged.
    """

    code: ClassVar[str] = "error"
    transient: ClassVar[bool] = False

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


# ---- requests -----------------------------------------------------------------------------------------


class InvalidRequest(GraftwerkError):
    """The request is well-formed but asks for something that cannot be."""

    code = "invalid_request"


class InvalidName(GraftwerkError):
    """A model's name or a path on the volume has a form that is not allowed."""

    code = "invalid_name"


class UnsupportedOption(GraftwerkError):
    """The request asks for an option that this version or this device does not offer."""

    code = "unsupported_option"


class IdempotencyConflict(GraftwerkError):
    """The same job id or idempotency key came with another body."""

    code = "idempotency_conflict"


# ---- jobs ---------------------------------------------------------------------------------------------


class JobNotFound(GraftwerkError):
    """No job has this id, or its record has expired."""

    code = "job_not_found"


class JobNotEnded(GraftwerkError):
    """The action needs an ended job and this one is still queued or running."""

    code = "job_not_ended"


class JobAlreadyEnded(GraftwerkError):
    """The action needs a queued or running job and this one has ended."""

    code = "job_already_ended"


class JobCanceled(GraftwerkError):
    """The job was canceled while it ran: raised at the next step to unwind cleanly."""

    code = "canceled"


class UpstreamFailed(GraftwerkError):
    """A job that this one was to run after has failed or was canceled."""

    code = "upstream_failed"


class JobTimeout(GraftwerkError):
    """The job ran longer than its limit."""

    code = "timeout"


class JobAbandoned(GraftwerkError):
    """The worker process died while the job ran, and no retry is left."""

    code = "worker_died"
    transient = True


class ExecutionSuperseded(GraftwerkError):
    """Another execution of the same job has taken over: this one must not publish."""

    code = "execution_superseded"


class QueueFull(GraftwerkError):
    """As many jobs wait as the settings allow."""

    code = "queue_full"
    transient = True


# ---- the volume ---------------------------------------------------------------------------------------


class ModelNotFound(GraftwerkError):
    """No model of this name is on the volume."""

    code = "model_not_found"


class ModelExists(GraftwerkError):
    """A model of this name (in whatever letter case) is there already, or a job is about to make it."""

    code = "model_exists"


class ModelInUse(GraftwerkError):
    """A queued or running job needs this model."""

    code = "model_in_use"


class SourceNotFound(GraftwerkError):
    """The path under `incoming/` that the request names does not exist."""

    code = "source_not_found"


class ResultsNotFound(GraftwerkError):
    """The job has left no such file on the volume."""

    code = "results_not_found"


class UnsafeArchive(GraftwerkError):
    """A zip archive would write outside its folder, holds links, or unpacks to more than the limits."""

    code = "unsafe_archive"


class DigestMismatch(GraftwerkError):
    """A file's SHA-256 is not the one that was asked for."""

    code = "digest_mismatch"


class DiskFull(GraftwerkError):
    """The volume has less room than the job needs."""

    code = "disk_full"


# ---- what files say -----------------------------------------------------------------------------------


class UnreadableFile(GraftwerkError):
    """A file is truncated, damaged or not of the format that its name promises."""

    code = "unreadable_file"


class UnsafePickle(GraftwerkError):
    """A pickle would call something that is no tensor: it is refused, never run."""

    code = "unsafe_pickle"


class UnsupportedFormat(GraftwerkError):
    """A file or folder is of a format or variant that is recognised and not supported."""

    code = "unsupported_format"


class IncompleteCheckpoint(GraftwerkError):
    """Files or tensors that the checkpoint must have are missing."""

    code = "incomplete_checkpoint"


class UnknownTensor(GraftwerkError):
    """A tensor's name stands in no row of the table: nothing is dropped without being understood."""

    code = "unknown_tensor"


class ShapeMismatch(GraftwerkError):
    """A tensor's shape is not the one that the checkpoint's other facts demand."""

    code = "shape_mismatch"


class ConfigMismatch(GraftwerkError):
    """`params.json` or `config.json` disagrees with the tensors."""

    code = "config_mismatch"


class NonFiniteTensor(GraftwerkError):
    """A tensor holds NaN or infinity."""

    code = "non_finite_tensor"


class WrongModelKind(GraftwerkError):
    """The model is of another kind than the request needs (an adapter where a base was asked for, say)."""

    code = "wrong_model_kind"


# ---- adapters -----------------------------------------------------------------------------------------


class IncompleteAdapter(GraftwerkError):
    """The adapter lacks its config, its weights or one half of a pair, or holds no tensors at all."""

    code = "incomplete_adapter"


class UnsupportedAdapter(GraftwerkError):
    """The adapter has an option that changes the result and that cannot be merged faithfully."""

    code = "unsupported_adapter"


class UnknownAdapterKey(GraftwerkError):
    """The adapter holds a tensor that matches nothing in the base."""

    code = "unknown_adapter_key"


class AdapterMismatch(GraftwerkError):
    """The adapter's tensors do not fit the base: it was trained on another one."""

    code = "adapter_mismatch"


class WrongAdapterOrder(GraftwerkError):
    """The adapters fit, but in another order."""

    code = "wrong_adapter_order"


class VocabularyMismatch(GraftwerkError):
    """Tokenizer and embedding rows, or the tokenizers of base and adapter, do not agree."""

    code = "vocabulary_mismatch"


class UnreadableTokenizer(GraftwerkError):
    """The tokenizer's file is missing, damaged or of an unknown kind."""

    code = "unreadable_tokenizer"


# ---- generating ---------------------------------------------------------------------------------------


class InvalidText(GraftwerkError):
    """The text holds lone surrogates or is otherwise no valid Unicode."""

    code = "invalid_text"


class PromptTooLong(GraftwerkError):
    """Prompt and new tokens together do not fit the model's context."""

    code = "prompt_too_long"


class NonFiniteLogits(GraftwerkError):
    """The model computed NaN or infinity for the next token."""

    code = "non_finite_logits"


class UnknownTemplate(GraftwerkError):
    """No prompt template has this name."""

    code = "unknown_template"


# ---- the service --------------------------------------------------------------------------------------


class NotReady(GraftwerkError):
    """Redis, the volume or a worker does not answer."""

    code = "not_ready"
    transient = True


class InvalidSettings(GraftwerkError):
    """The settings of this process contradict each other or are unsafe."""

    code = "invalid_settings"


class VerificationFailed(GraftwerkError):
    """The finished model did not pass its own check: nothing was published."""

    code = "verification_failed"


class InternalError(GraftwerkError):
    """A fault of Graftwerk's own: the traceback is in the worker's log."""

    code = "internal_error"
    transient = True
