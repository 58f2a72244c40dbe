"""Files that an import fetches from the Hub, and the checks that need no download."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.architectures.config import known_class
from services.architectures.quantized import check_quantization
from services.errors import GraftwerkError, HubFileChanged, UnreadableFile
from services.files.json_file import parse_json
from services.kinds.import_ import HubSource
from services.models.hub import Hub, Repository, http_client
from services.models.hub_files import HubFile, chosen_files

CONFIG_LIMIT_BYTES = 2**20
"""Largest `config.json` that is read before a download."""


@dataclass(frozen=True, slots=True)
class Listing:
    """A repository with the files that an import would fetch, or the reason why it would be refused."""

    repository: Repository
    selected: tuple[HubFile, ...]
    refusal: GraftwerkError | None


def selection(hub: Hub, source: HubSource) -> tuple[Repository, tuple[HubFile, ...]]:
    """Returns the repository of a source and the files to fetch, all within the time of one question.

    One file is asked for, because a gated repository lists its files to everyone; where there is a config.json, it
    is read, and its type of model and the encoding of the weights are checked.

    Raises:
        UnsupportedFormat: the files are not those of a model that can be read.
        InvalidRequest: several GGUF files could be meant, or a pattern matches nothing.
        GraftwerkError: as `Hub.ask`.
    """

    def answer() -> tuple[Repository, tuple[HubFile, ...]]:
        repository = hub.fetch_repository(source.hub, source.revision)
        return repository, _selected(hub, repository, source)

    return hub.ask(answer, repository=source.hub, revision=source.revision)


def listing(hub: Hub, source: HubSource) -> Listing:
    """Returns what `selection` returns, with the refusal of an import if its files are the reason. Raises what `ask` raises."""

    def answer() -> Listing:
        repository = hub.fetch_repository(source.hub, source.revision)
        try:
            return Listing(repository, _selected(hub, repository, source), None)
        except GraftwerkError as refusal:
            return Listing(repository, (), refusal)

    return hub.ask(answer, repository=source.hub, revision=source.revision)


def _selected(hub: Hub, repository: Repository, source: HubSource) -> tuple[HubFile, ...]:
    files = chosen_files(repository.name, repository.files, source.files)
    config = next((file for file in files if file.path == "config.json"), None)
    if config is None:
        hub.fetch_location(repository, files[0])
        return files
    values = _json(hub, repository, config)
    known_class(values)
    check_quantization(values, Path(repository.name), dequantized=True)
    return files


def _json(hub: Hub, repository: Repository, file: HubFile) -> dict[str, Any]:
    content = _content(hub, repository, file)
    try:
        value = parse_json(content)
    except ValueError as error:
        raise UnreadableFile(
            f"{file.path} of {repository.name} is not valid JSON.", "Choose another revision."
        ) from error
    if not isinstance(value, dict):
        raise UnreadableFile(
            f"{file.path} of {repository.name} is not a JSON object.", "Choose another revision."
        )
    return value


def _content(hub: Hub, repository: Repository, file: HubFile) -> bytes:
    if file.size_bytes > CONFIG_LIMIT_BYTES:
        raise UnreadableFile(
            f"{file.path} of {repository.name} has {file.size_bytes} bytes; at most {CONFIG_LIMIT_BYTES} are read.",
            "Choose another revision.",
        )
    place = hub.fetch_location(repository, file)
    content = b""
    with http_client().stream("GET", place.url, headers=place.headers, timeout=hub.seconds) as response:
        response.raise_for_status()
        for piece in response.iter_raw():
            content += piece
            if len(content) > file.size_bytes:
                break
    if len(content) != file.size_bytes:
        raise HubFileChanged(
            f"{file.path} of {repository.name} has {len(content)} bytes or more; its commit lists {file.size_bytes}.",
            "Submit the import again.",
        )
    return content
