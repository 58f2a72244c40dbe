"""Licence of a model folder, from its model card, its licence file or its GGUF file."""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from services.errors import GraftwerkError
from services.files.front_matter import front_matter
from services.files.gguf_header import read_gguf_header
from services.files.gguf_origin import gguf_origin

LICENSE_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE")
LICENSE_START = 4096
"""Bytes of a licence file that are looked at."""

LICENSE_TEXTS: Sequence[tuple[str, str]] = (
    (r"apache license\s+version 2\.0", "apache-2.0"),
    (r"llama 3\.3 community license", "llama3.3"),
    (r"llama 3\.2 community license", "llama3.2"),
    (r"llama 3\.1 community license", "llama3.1"),
    (r"llama 3 community license", "llama3"),
    (r"llama 2 community license", "llama2"),
    (r"gemma terms of use", "gemma"),
    (r"mit license|permission is hereby granted, free of charge", "mit"),
)
"""Patterns in the first lines of a licence file (ignoring case), and the Hub's name of the licence."""


@dataclass(frozen=True, slots=True)
class License:
    """The Hub's id of a licence; `name` and `link` belong to the id `other`."""

    id: str
    name: str | None = None
    link: str | None = None


def license_of(folder: Path) -> License | None:
    """Returns the licence that a folder states, None if it states none."""
    card = front_matter(folder)
    stated = card.get("license")
    if isinstance(stated, list) and len(stated) == 1:
        stated = stated[0]
    id = _encodable(stated)
    if id:
        return License(id, _encodable(card.get("license_name")), _absolute(card.get("license_link")))
    return _license_of_file(folder) or _license_of_gguf(folder)


def _license_of_gguf(folder: Path) -> License | None:
    """Returns the licence in the metadata of a folder's first GGUF file."""
    path = next(iter(sorted(folder.glob("*.gguf"))), None)
    if path is None:
        return None
    with suppress(GraftwerkError):  # a damaged file is refused by those who need its tensors
        origin = gguf_origin(read_gguf_header(path).metadata)
        stated = origin.get("license")
        link = _absolute(origin.get("license.link"))
        return License(stated, origin.get("license.name"), link) if stated else None
    return None


def _encodable(text: object) -> str | None:
    """Returns a text with `?` for what UTF-8 cannot hold, which escapes in YAML can name."""
    return text.encode("utf-8", "replace").decode() if isinstance(text, str) else None


def _absolute(link: object) -> str | None:
    text = _encodable(link)
    return text if text and text.startswith("https://") else None


def _license_of_file(folder: Path) -> License | None:
    for path in (folder / name for name in LICENSE_FILES):
        if not path.is_file():
            continue
        with path.open("rb") as file:
            start = file.read(LICENSE_START).decode("utf-8", "replace")
        text = " ".join(start.lower().split())
        found = next((license for pattern, license in LICENSE_TEXTS if re.search(pattern, text)), None)
        return License(found) if found else License("other", "unrecognized")
    return None


def joint_license(licenses: Sequence[License | None]) -> License | None:
    """Returns the licence of a model that was made from inputs with these: the only one, or `other` if they differ."""
    stated = list(dict.fromkeys(license for license in licenses if license is not None))
    if len(stated) < 2:
        return stated[0] if stated else None
    return License("other", "several")
