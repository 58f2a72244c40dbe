"""Headers of the tus protocol: their documentation, and their values as the service uses them."""

import base64
import binascii
import hashlib
import re

from flask import request
from pydantic import BaseModel, Field
from werkzeug.exceptions import BadRequest

from services.errors import UnsupportedOption
from services.models.upload_file import CHECKSUMS, Checksum, NewUpload

VERSION = "1.0.0"
EXTENSIONS = "creation,creation-with-upload,expiration,checksum,termination"
MEDIA_TYPE = "application/offset+octet-stream"

OPTIONS_OF_OTHERS = {
    "Upload-Concat": "Send each file as one upload (`parallelUploads: 1`).",
    "Upload-Defer-Length": "Send Upload-Length when the upload is created.",
}
"""Headers of extensions that are not offered, and what to do instead."""


class ProtocolHeader(BaseModel):
    """Header of every request except OPTIONS and GET."""

    tus_resumable: str | None = Field(default=None, alias="Tus-Resumable", description="Always 1.0.0.")


class ChecksumHeader(ProtocolHeader):
    """Header of a request with bytes."""

    upload_checksum: str | None = Field(
        default=None,
        alias="Upload-Checksum",
        description=f"Of the bytes of this request: one of {', '.join(CHECKSUMS)}, a space, the digest in Base64.",
    )


class CreationHeader(ChecksumHeader):
    """Headers of a creation."""

    upload_length: str | None = Field(
        default=None, alias="Upload-Length", description="Size of the file in bytes."
    )
    upload_metadata: str | None = Field(
        default=None,
        alias="Upload-Metadata",
        description="Pairs of a key and a value in Base64, separated by commas: `filename`, the path in the model, and "
        "`sha256`, which the import checks. Other keys are kept.",
    )


class PatchHeader(ChecksumHeader):
    """Headers of a request that continues an upload."""

    upload_offset: str | None = Field(
        default=None, alias="Upload-Offset", description="Number of bytes that have arrived."
    )


def refuse_other_extensions() -> None:
    """Raises UnsupportedOption if the current request needs an extension that is not offered."""
    for name, advice in OPTIONS_OF_OTHERS.items():
        if name in request.headers:
            raise UnsupportedOption(f"{name} is not offered; this service offers {EXTENSIONS}.", advice)


def announced(header: CreationHeader) -> NewUpload:
    """Returns the file that a creation announces; raises BadRequest if its headers cannot be read."""
    metadata = _metadata(header.upload_metadata or "")
    sha256 = metadata.get("sha256") or None
    if sha256 is not None and not re.fullmatch("[0-9a-fA-F]{64}", sha256):
        raise BadRequest(f"The sha256 of Upload-Metadata is {sha256[:80]!r}, not 64 hexadecimal digits.")
    return NewUpload(
        size_bytes=byte_count("Upload-Length", header.upload_length),
        filename=metadata.get("filename") or None,
        sha256=sha256.lower() if sha256 else None,
        metadata=header.upload_metadata or "",
    )


def _metadata(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for pair in filter(None, (part.strip() for part in text.split(","))):
        key, _, value = pair.partition(" ")
        if key in found:
            raise BadRequest(f"Upload-Metadata has the key {key!r} twice.")
        try:
            found[key] = base64.b64decode(value, validate=True).decode("utf-8")
        except ValueError as error:
            raise BadRequest(f"The value of {key!r} in Upload-Metadata is not UTF-8 in Base64.") from error
    return found


def byte_count(name: str, text: str | None) -> int:
    """Returns the number in a header; raises BadRequest if there is none."""
    if text is None or not re.fullmatch("[0-9]{1,19}", text):
        found = "missing" if text is None else repr(text[:80])
        raise BadRequest(f"The header {name} is {found}; a number of bytes is needed.")
    return int(text)


def parse_checksum(text: str | None) -> Checksum | None:
    """Returns the value of `Upload-Checksum`; raises BadRequest if it is malformed or of another algorithm."""
    if text is None:
        return None
    algorithm, _, digest = text.partition(" ")
    if algorithm not in CHECKSUMS:
        raise BadRequest(f"Upload-Checksum uses {algorithm[:80]!r}; offered are {', '.join(CHECKSUMS)}.")
    try:
        decoded = base64.b64decode(digest, validate=True)
    except binascii.Error as error:
        raise BadRequest("The digest of Upload-Checksum is not Base64.") from error
    if len(decoded) != hashlib.new(algorithm, usedforsecurity=False).digest_size:
        raise BadRequest(
            f"The digest of Upload-Checksum has {len(decoded)} bytes, which {algorithm} never has."
        )
    return Checksum(algorithm, decoded)
