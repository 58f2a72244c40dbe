"""Models as the page lists them: searched, filtered by kind, sorted, in parts."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args
from urllib.parse import urlencode

from services.kinds.model_summary import ModelKind, ModelSummary

PAGE_SIZE = 50

SORTS: Mapping[str, Callable[[ModelSummary], Any]] = {
    "name": lambda model: model.name.lower(),
    "parameters": lambda model: -(model.parameters or 0),
    "size": lambda model: -model.size_bytes,
    "created": lambda model: -(model.created_at.timestamp() if model.created_at else 0),
}
"""Keys by the parameter `sort`; the largest and the newest come first."""

PROBLEMS = "problems"
"""Value of the parameter `kind` for models with problems."""


def page_number(text: str) -> int:
    """Returns the number of a page in a query, 1 for anything that is not one."""
    return max(1, int(text)) if text.isascii() and text.isdigit() and len(text) < 7 else 1


@dataclass(frozen=True, slots=True)
class Selection:
    """Parameters of the list: a text to search for, a kind or `problems`, a sort key, and the number of the page."""

    search: str = ""
    kind: str = ""
    sort: str = "name"
    page: int = 1

    @classmethod
    def of(cls, parameters: Mapping[str, str]) -> "Selection":
        """Returns the selection in a query; a value that is not known means the default."""
        kind, sort, page = (parameters.get(name, "") for name in ("kind", "sort", "page"))
        return cls(
            search=parameters.get("search", "").strip()[:200],
            kind=kind if kind in (*get_args(ModelKind), PROBLEMS) else "",
            sort=sort if sort in SORTS else "name",
            page=page_number(page),
        )

    def url(self, **changes: Any) -> str:
        """Returns the address of the page with other values; without a `page` it is the first one."""
        changed = replace(self, **{"page": 1, **changes})
        standard = Selection()
        values = {name: getattr(changed, name) for name in self.__slots__}
        query = urlencode({name: value for name, value in values.items() if value != getattr(standard, name)})
        return f"/?{query}" if query else "/"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPart:
    """One page of the list.

    Attributes:
        matching: Number of all selected models.
        counts: Models by kind, and those with problems, before the filter by kind.
        pages: Number of pages.
    """

    selection: Selection
    models: Sequence[ModelSummary]
    matching: int
    counts: Mapping[str, int]
    pages: int


def part_of(models: Sequence[ModelSummary], selection: Selection) -> ModelPart:
    """Returns the selected page of the models."""
    found = [model for model in models if _contains(model, selection.search.lower())]
    counts = Counter[str](model.kind for model in found)
    counts[PROBLEMS] = sum(bool(model.problems) for model in found)
    if selection.kind:
        found = [model for model in found if _is_of(model, selection.kind)]
    found.sort(key=SORTS[selection.sort])
    pages = max(1, -(-len(found) // PAGE_SIZE))
    selection = replace(selection, page=min(selection.page, pages))
    start = (selection.page - 1) * PAGE_SIZE
    return ModelPart(
        selection=selection, models=found[start : start + PAGE_SIZE], matching=len(found), counts=counts, pages=pages
    )  # fmt: skip


def _contains(model: ModelSummary, text: str) -> bool:
    return text in model.name.lower() or text in (model.known_as or "").lower()


def _is_of(model: ModelSummary, kind: str) -> bool:
    return bool(model.problems) if kind == PROBLEMS else model.kind == kind
