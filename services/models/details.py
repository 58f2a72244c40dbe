"""Details of one model for its own page: its card as HTML, its licence, and the figures of the job that made it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from services.bounded_text import bounded
from services.errors import GraftwerkError
from services.files.front_matter import CARD_NAME
from services.files.regular_file import read_regular
from services.kinds.merge import AdapterAccount, MergeVerification
from services.models.card_html import card_html
from services.models.licenses import license_of
from services.models.manifest import Manifest, read_manifest

CARD_LIMIT_BYTES = 256 * 1024
"""Largest model card that is shown. Those of the Hub have some kilobytes."""

FIGURES = ("bits_per_weight", "kl_divergence", "same_top_token", "device", "tensors", "rank", "same_as")
"""Figures of a job's result that the page shows."""


Part = TypeVar("Part", bound=BaseModel)


class ModelDetails(BaseModel):
    """Details of a model.

    Attributes:
        card: The model card as HTML without any markup of its author's; None without a card that can be shown.
        card_problem: Reason why a card is not shown.
        license: The licence that the folder states.
        verification: Report of the verification of a merge.
        adapters: Counts and norms of the adapters of a merge.
        figures: Other figures of the result, by name.
    """

    card: str | None = None
    card_problem: str = ""
    license: str | None = None
    verification: MergeVerification | None = None
    adapters: list[AdapterAccount] = []
    figures: dict[str, float | str] = {}


def read_details(folder: Path) -> ModelDetails:
    """Returns the details of the model in a folder. A manifest that is damaged is reported by the summary."""
    card, problem = _card(folder)
    stated = license_of(folder)
    try:
        manifest = read_manifest(folder)
    except GraftwerkError:
        manifest = None
    return ModelDetails(
        card=card, card_problem=problem, license=bounded(stated.name or stated.id, 200) if stated else None,
        **(_of_result(manifest) if manifest else {}),
    )  # fmt: skip


def _of_result(manifest: Manifest) -> dict[str, Any]:
    result = manifest.result
    figures = {name: result.get(name) for name in FIGURES}
    return {
        "verification": _parsed(MergeVerification, result.get("verification")),
        "adapters": _accounts(result.get("adapters")),
        "figures": {
            name: bounded(value, 200) if isinstance(value, str) else value
            for name, value in figures.items()
            if isinstance(value, (str, int, float)) and not isinstance(value, bool)
        },
    }


def _accounts(values: object) -> list[AdapterAccount]:
    found = [_parsed(AdapterAccount, value) for value in values] if isinstance(values, list) else []
    return [account for account in found if account is not None]


def _parsed(part: type[Part], value: object) -> Part | None:
    """Returns the known fields of a part of a result; None for one of another version, or not of ours."""
    if not isinstance(value, Mapping):
        return None
    try:
        return part.model_validate({name: value[name] for name in part.model_fields if name in value})
    except ValidationError:
        return None


def _card(folder: Path) -> tuple[str | None, str]:
    """Returns the card, or the reason why there is one that is not shown."""
    path = folder / CARD_NAME
    if not path.is_file():
        return None, ""
    try:
        text = read_regular(path, CARD_LIMIT_BYTES, hint="Download the file to read it.")
    except GraftwerkError as error:
        return None, f"{error.message} {error.hint}"
    return card_html(text.decode("utf-8", "replace")), ""
