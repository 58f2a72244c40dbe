"""Models to choose from: as many as a page lists, found by the words of their names and kinds."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from services.kinds.model_summary import ModelSummary

MOST_CHOICES = 30
"""Most models of a list; a search finds the others."""

SEARCH_CHARACTERS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """The models that a page lists.

    Attributes:
        models: The first of the found ones in their order, and those that are chosen already.
        matching: Number of all models that the search finds.
        total: Number of all models.
        search: The words that were searched for.
    """

    models: Sequence[ModelSummary]
    matching: int
    total: int
    search: str = ""

    @property
    def is_cut(self) -> bool:
        """True if the search finds more than are listed."""
        return self.matching > MOST_CHOICES


def choices_of(models: Sequence[ModelSummary], search: str = "", chosen: Collection[str] = ()) -> Choices:
    """Returns the models that have every word of a search, and those with the names `chosen`, in the order of `models`."""
    search = search.strip()[:SEARCH_CHARACTERS]
    words = search.lower().split()
    found = [model for model in models if _has(model, words)]
    listed = {*chosen, *(model.name for model in found[:MOST_CHOICES])}
    return Choices(
        models=[model for model in models if model.name in listed], matching=len(found), total=len(models), search=search
    )  # fmt: skip


def _has(model: ModelSummary, words: Sequence[str]) -> bool:
    text = f"{model.name} {model.kind} {model.known_as or ''}".lower()
    return all(word in text for word in words)
