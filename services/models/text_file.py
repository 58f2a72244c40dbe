"""Texts under `incoming/`."""

from services.errors import UnreadableFile
from services.models.store import ModelStore


def read_text_file(store: ModelStore, name: str) -> str:
    """Returns a UTF-8 text on the volume, unchanged except for a byte order mark.

    Raises:
        UnreadableFile: The file is not UTF-8 text.
        SourceNotFound, InvalidName: There is no such file.
    """
    try:
        return store.incoming(name).read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UnreadableFile(f"{name} is not a UTF-8 text file: {error}.", "Save it as UTF-8.") from error
