"""Lineage of a model as a graph with positions: its inputs over several generations, and the models made of it."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from services.kinds.model_summary import ModelSummary

NODES_LIMIT = 40
CHILDREN_LIMIT = 8
LABEL_CHARACTERS = 22

WIDTH, HEIGHT = 200, 54
"""Size of a node in pixels."""

COLUMN, ROW, MARGIN = 290, 74, 8
"""Distances of the nodes' corners, and of the border."""

ROLES: Mapping[str, tuple[str, ...]] = {"convert": ("source", "base"), "import": ()}
"""Roles of the inputs that are parents, by operation; others have all. A conversion also records the adapters of its source, and
the source of an import is not a model.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parent:
    """An input of a model; `order` and `scale` are an adapter's."""

    name: str
    role: str
    order: int | None = None
    scale: float | None = None
    digest: str | None = None


@dataclass(slots=True, kw_only=True)
class Node:
    """A model at its position; `model` is None if it is not on the volume.

    `is_changed`: another model has this name now.
    """

    name: str
    model: ModelSummary | None
    parents: list[Parent] = field(default_factory=list)
    is_changed: bool = False
    column: int = 0
    row: float = 0

    @property
    def label(self) -> str:
        """The name, cut in its middle if it is long."""
        if len(self.name) <= LABEL_CHARACTERS:
            return self.name
        half = LABEL_CHARACTERS // 2
        return f"{self.name[:half]}…{self.name[1 - half :]}"

    @property
    def x(self) -> int:
        """Left edge."""
        return MARGIN + self.column * COLUMN

    @property
    def y(self) -> int:
        """Upper edge."""
        return MARGIN + round(self.row * ROW)


@dataclass(frozen=True, slots=True)
class Edge:
    """A line from an input to what was made of it."""

    parent: Parent
    start: Node
    end: Node

    @property
    def path(self) -> str:
        """Curve from the right side of one node to the left side of the other, as SVG's path data."""
        x1, y1 = self.start.x + WIDTH, self.start.y + HEIGHT // 2
        x2, y2 = self.end.x, self.end.y + HEIGHT // 2
        half = (COLUMN - WIDTH) // 2
        return f"M{x1} {y1}C{x1 + half} {y1} {x2 - half} {y2} {x2} {y2}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """Nodes and edges with their positions; `is_cut` if there are more than are shown."""

    nodes: list[Node]
    edges: list[Edge]
    is_cut: bool

    @property
    def width(self) -> int:
        """Pixels from left to right."""
        return max(node.x for node in self.nodes) + WIDTH + MARGIN

    def has(self, name: str) -> bool:
        """Returns True for a model that is on the volume and shown."""
        return any(node.name == name and node.model is not None for node in self.nodes)

    @property
    def height(self) -> int:
        """Pixels from top to bottom."""
        return max(node.y for node in self.nodes) + HEIGHT + MARGIN


def parents_of(model: ModelSummary) -> list[Parent]:
    """Returns the inputs that a model was made of, in order."""
    lineage = model.lineage or {}
    operation = lineage.get("operation", "")
    entries = lineage.get("inputs", [])
    if operation in ROLES:
        entries = [entry for entry in entries if entry["role"] in ROLES[operation]]
    return list(_parents(entries))


def _parents(entries: list[dict[str, Any]]) -> Iterator[Parent]:
    order = 0
    for entry in entries:
        is_adapter = entry["role"] == "adapter"
        order += is_adapter
        yield Parent(
            name=entry["name"], role=entry["role"], order=order if is_adapter else None, scale=entry.get("scale"),
            digest=entry.get("digest"),
        )  # fmt: skip


def children_by_parent(models: Mapping[str, ModelSummary]) -> Mapping[str, list[str]]:
    """Returns the names of the models that were made of each model, in the order of `models`."""
    found: dict[str, dict[str, None]] = {}
    for model in models.values():
        for parent in parents_of(model):
            found.setdefault(parent.name, {})[model.name] = None
    return {name: list(children) for name, children in found.items()}


def graph_of(name: str, models: Mapping[str, ModelSummary]) -> Graph:
    """Returns the lineage of a model among all models of the volume."""
    layout = _Layout(models)
    layout.add(name)
    layout.turn()
    children = children_by_parent(models).get(name, [])
    for child in children[:CHILDREN_LIMIT]:
        layout.add_child(child, name)
    layout.place()
    is_cut = layout.is_cut or len(children) > CHILDREN_LIMIT
    return Graph(nodes=list(layout.nodes.values()), edges=layout.edges(), is_cut=is_cut)


class _Layout:
    """Nodes by name: each generation is a column, in which they follow in the order of their first appearance."""

    def __init__(self, models: Mapping[str, ModelSummary]) -> None:
        self._models = models
        self.nodes: dict[str, Node] = {}
        self.is_cut = False

    def add(self, name: str, depth: int = 0, path: tuple[str, ...] = ()) -> None:
        """Adds a model and its inputs; its column, counted from the right, is the length of its longest line of descent."""
        is_new = name not in self.nodes
        node = self._node(name)
        if node is None or not (is_new or depth > node.column):
            return
        node.column = depth
        for parent in node.parents:
            # a name that was used again for a model made of its own earlier self would be a circle
            if parent.name not in (*path, name):
                self.add(parent.name, depth + 1, (*path, name))

    def _node(self, name: str) -> Node | None:
        if name in self.nodes:
            return self.nodes[name]
        if len(self.nodes) >= NODES_LIMIT:
            self.is_cut = True
            return None
        model = self._models.get(name)
        node = Node(name=name, model=model, parents=parents_of(model) if model else [])
        self.nodes[name] = node
        return node

    def turn(self) -> None:
        """Counts the columns from the left."""
        deepest = max(node.column for node in self.nodes.values())
        for node in self.nodes.values():
            node.column = deepest - node.column

    def add_child(self, name: str, parent: str) -> None:
        """Adds a model that was made of another one, in the column after it."""
        if name not in self.nodes:
            model = self._models[name]
            own = [entry for entry in parents_of(model) if entry.name == parent]
            self.nodes[name] = Node(name=name, model=model, parents=own, column=self.nodes[parent].column + 1)

    def place(self) -> None:
        """Gives each node its row: the columns are centred."""
        sizes = Counter(node.column for node in self.nodes.values())
        rows: Counter[int] = Counter()
        for node in self.nodes.values():
            node.row = rows[node.column] + (max(sizes.values()) - sizes[node.column]) / 2
            rows[node.column] += 1
            for parent in node.parents:
                used = self.nodes.get(parent.name)
                if used is not None:
                    used.is_changed |= _is_changed(parent, used.model)

    def edges(self) -> list[Edge]:
        """Returns the lines between the nodes."""
        return [
            Edge(parent, self.nodes[parent.name], node)
            for node in self.nodes.values()
            for parent in node.parents
            if parent.name in self.nodes and self.nodes[parent.name].column < node.column
        ]


def _is_changed(parent: Parent, model: ModelSummary | None) -> bool:
    """Returns True if the model of this name is not the one that was used; adapters are recorded by other digests."""
    return (
        model is not None
        and parent.role in ("base", "source")
        and None not in (parent.digest, model.digest)
        and parent.digest != model.digest
    )
