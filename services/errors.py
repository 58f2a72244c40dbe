"""Errors that Graftwerk raises on purpose: one flat tree, each class with a stable code.

A message says what was found and what was needed, with names and numbers; a hint says what to do. The library raises
these errors; `api/errors.py` turns them into an HTTP status, `worker/lifecycle.py` into the job's record. The first line of a
class's docstring is the title over HTTP and the meaning in `docs/errors.md`.
"""

from collections.abc import Sequence
from typing import ClassVar

from services.bounded_text import bounded


class GraftwerkError(Exception):
    """Root of all errors.

    Attributes:
        code: stable code.
        transient: the same request may succeed if it is repeated unchanged.
        message: complete sentence that says what is wrong; names of unusual length in it are cut in the middle.
        hint: complete sentence that says what to do, or the empty string.
    """

    code: ClassVar[str] = "error"
    transient: ClassVar[bool] = False

    def __init__(self, message: str, hint: str = "") -> None:
        self.message = bounded(message)
        self.hint = bounded(hint)
        super().__init__(self.message)


# ---- requests -----------------------------------------------------------------------------------------


class InvalidRequest(GraftwerkError):
    """The request is well-formed, but cannot be fulfilled."""

    code = "invalid_request"


class InvalidName(GraftwerkError):
    """A model's name or a path on the volume has a form that is not allowed."""

    code = "invalid_name"


class UnsupportedOption(GraftwerkError):
    """The request asks for an option that this version or this device does not offer."""

    code = "unsupported_option"


class UnsupportedSchema(GraftwerkError):
    """The JSON schema or regular expression of the outputs cannot be enforced, or is too large."""

    code = "unsupported_schema"


class IdempotencyConflict(GraftwerkError):
    """The same job id or idempotency key was used with another body."""

    code = "idempotency_conflict"


# ---- jobs ---------------------------------------------------------------------------------------------


class JobNotFound(GraftwerkError):
    """No job has this id, or its record has expired."""

    code = "job_not_found"


class JobNotEnded(GraftwerkError):
    """The action needs an ended job, but this one is still queued or running."""

    code = "job_not_ended"


class JobAlreadyEnded(GraftwerkError):
    """The action needs a queued or running job, but this one has ended."""

    code = "job_already_ended"


class JobCanceled(GraftwerkError):
    """The job was canceled."""

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
    """Another execution of the same job has started, so this one must not publish."""

    code = "execution_superseded"


class DeliveryNotFound(GraftwerkError):
    """The job has no delivery of this id."""

    code = "delivery_not_found"


class DeliveryPending(GraftwerkError):
    """The delivery has not ended: it will be attempted again without a request."""

    code = "delivery_pending"


class QueueFull(GraftwerkError):
    """The number of waiting jobs has reached the limit of the settings."""

    code = "queue_full"
    transient = True


# ---- the volume ---------------------------------------------------------------------------------------


class ModelNotFound(GraftwerkError):
    """No model of this name is on the volume."""

    code = "model_not_found"


class ModelExists(GraftwerkError):
    """A model of this name (ignoring case) exists already, or a job is making it."""

    code = "model_exists"


class ModelInUse(GraftwerkError):
    """A queued or running job needs this model."""

    code = "model_in_use"


class SourceNotFound(GraftwerkError):
    """The path under `incoming/` that the request names does not exist."""

    code = "source_not_found"


class ResultsNotFound(GraftwerkError):
    """The job has not written this file on the volume."""

    code = "results_not_found"


class UnsafeArchive(GraftwerkError):
    """A zip archive would write outside its folder, holds links, or unpacks to more than the limits."""

    code = "unsafe_archive"


class DigestMismatch(GraftwerkError):
    """A file's SHA-256 differs from the requested one."""

    code = "digest_mismatch"


class VolumeUnavailable(GraftwerkError):
    """The model volume is not mounted, or cannot be read or written."""

    code = "volume_unavailable"
    transient = True


class DiskFull(GraftwerkError):
    """The volume has less free space than the job needs."""

    code = "disk_full"


# ---- uploads ------------------------------------------------------------------------------------------


class UploadNotFound(GraftwerkError):
    """No upload has this id, or it has expired."""

    code = "upload_not_found"


class UploadUnfinished(GraftwerkError):
    """The request needs a finished upload, but bytes of this one are missing."""

    code = "upload_unfinished"


class UploadLocked(GraftwerkError):
    """Another request writes to this upload at the moment."""

    code = "upload_locked"
    transient = True


class UploadInUse(GraftwerkError):
    """A queued or running job needs this upload."""

    code = "upload_in_use"


class WrongOffset(GraftwerkError):
    """The bytes of a request do not begin where the upload ends."""

    code = "wrong_offset"


class UploadTooLarge(GraftwerkError):
    """An upload is larger than the limit of the settings, or a request has more bytes than its upload."""

    code = "upload_too_large"


class UploadQuotaExceeded(GraftwerkError):
    """All unfinished uploads together would exceed the quota of the settings."""

    code = "upload_quota_exceeded"


class ChecksumMismatch(GraftwerkError):
    """The bytes of a request do not have the checksum that it gives; they were dropped."""

    code = "checksum_mismatch"
    transient = True


# ---- the Hub ------------------------------------------------------------------------------------------


class HubDisabled(GraftwerkError):
    """The settings do not allow what the request needs of the Hub: `HUB_ENABLED` is off, or there is no token."""

    code = "hub_disabled"


class HubNotFound(GraftwerkError):
    """The Hub has no repository, revision or file of this name, or does not show it without a token."""

    code = "hub_not_found"


class HubGated(GraftwerkError):
    """The Hub gives access to this repository only to accounts that its owner has accepted."""

    code = "hub_gated"


class HubUnreachable(GraftwerkError):
    """The Hub does not answer, or answers with an error of its own."""

    code = "hub_unreachable"
    transient = True


class HubFileChanged(GraftwerkError):
    """A file of the Hub is not the one that its commit lists, or it changed during the download."""

    code = "hub_file_changed"


# ---- files -----------------------------------------------------------------------------------


class UnreadableFile(GraftwerkError):
    """A file is truncated, damaged or not of the format that its name promises."""

    code = "unreadable_file"


class ReadLimitExceeded(GraftwerkError):
    """Reading the headers of a folder takes more time, memory or files than the limits allow."""

    code = "read_limit_exceeded"


class UnsafePickle(GraftwerkError):
    """A pickle would call something other than a tensor constructor; it is refused and never executed."""

    code = "unsafe_pickle"


class UnsupportedFormat(GraftwerkError):
    """A file or folder has a format or variant that is recognized but not supported."""

    code = "unsupported_format"


class IncompleteCheckpoint(GraftwerkError):
    """Files or tensors that the checkpoint must have are missing."""

    code = "incomplete_checkpoint"


class UnknownTensor(GraftwerkError):
    """A tensor's name matches no row of the family's table; no tensor is dropped silently."""

    code = "unknown_tensor"


class ShapeMismatch(GraftwerkError):
    """A tensor's shape contradicts the rest of the checkpoint."""

    code = "shape_mismatch"


class ConfigMismatch(GraftwerkError):
    """`params.json` or `config.json` disagrees with the tensors."""

    code = "config_mismatch"


class NonFiniteTensor(GraftwerkError):
    """A tensor holds NaN or infinity."""

    code = "non_finite_tensor"


class WrongModelKind(GraftwerkError):
    """The model is not of the kind that the request needs (for example an adapter instead of a base model)."""

    code = "wrong_model_kind"


# ---- adapters -----------------------------------------------------------------------------------------


class IncompleteAdapter(GraftwerkError):
    """The adapter lacks its config, its weights or one half of a pair, or holds no tensors at all."""

    code = "incomplete_adapter"


class UnsupportedAdapter(GraftwerkError):
    """The adapter has an option that changes the result and cannot be merged exactly."""

    code = "unsupported_adapter"


class UnknownAdapterKey(GraftwerkError):
    """The adapter holds a tensor that matches nothing in the base."""

    code = "unknown_adapter_key"


class AdapterMismatch(GraftwerkError):
    """The adapter's tensors do not fit the base: it was trained on another one."""

    code = "adapter_mismatch"


class WrongAdapterOrder(GraftwerkError):
    """The adapters fit, but in another order.

    Attributes:
        order: the names in the order that fits; empty if no order of these adapters does.
    """

    code = "wrong_adapter_order"

    def __init__(self, message: str, hint: str = "", *, order: Sequence[str] = ()) -> None:
        super().__init__(message, hint)
        self.order = list(order)


class VocabularyMismatch(GraftwerkError):
    """Tokenizer and embedding rows, or the tokenizers of base and adapter, do not agree."""

    code = "vocabulary_mismatch"


class UnreadableTokenizer(GraftwerkError):
    """The tokenizer's file is missing, damaged or of an unknown kind."""

    code = "unreadable_tokenizer"


# ---- generating ---------------------------------------------------------------------------------------


class InvalidText(GraftwerkError):
    """The text holds lone surrogates or is otherwise not valid Unicode."""

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


class TemplateLimitExceeded(GraftwerkError):
    """The model's own chat template takes too long, too much memory, or gives too long a text."""

    code = "template_limit_exceeded"


# ---- the service --------------------------------------------------------------------------------------


class InsufficientMemory(GraftwerkError):
    """The job needs more memory than its worker may use in all."""

    code = "insufficient_memory"


class MemoryUnavailable(GraftwerkError):
    """The job's memory is not available now: the job goes back to its queue and waits there."""

    code = "memory_unavailable"
    transient = True


class NotReady(GraftwerkError):
    """Redis, the volume or a worker does not answer."""

    code = "not_ready"
    transient = True


class InvalidSettings(GraftwerkError):
    """The settings of this process contradict each other or are unsafe."""

    code = "invalid_settings"


class VerificationFailed(GraftwerkError):
    """The finished model did not pass its verification; nothing was published."""

    code = "verification_failed"


class InternalError(GraftwerkError):
    """An internal error; the traceback is in the log."""

    code = "internal_error"
    transient = True
