"""Tensors that a model of some configuration must have, by its family's table."""

from dataclasses import dataclass

from services.architectures.config import ModelConfig
from services.architectures.key_map import Row, Shape
from services.errors import InternalError


@dataclass(frozen=True, slots=True)
class Expected:
    """One tensor that a model of some configuration must have."""

    row: Row
    layer: int | None
    shape: Shape

    @property
    def huggingface(self) -> str:
        """Hugging Face's name, as the table has it."""
        assert self.row.huggingface is not None
        return self.row.huggingface.format(self.layer)

    @property
    def meta(self) -> str | None:
        """Meta's name, None if that layout has no such tensor."""
        return None if self.row.meta is None else self.row.meta.format(self.layer)


def expected_tensors(config: ModelConfig) -> list[Expected]:
    """Returns every tensor of a model of this configuration, embeddings first, then layer by layer."""
    assert config.family is not None, "the caller has a family"
    rows = [row for row in config.family.rows if row.shape is not None and row.needed(config)]
    layered = [row for row in rows if "{}" in (row.huggingface or "")]
    first, last = rows[0], [row for row in rows[1:] if row not in layered]
    order: list[tuple[Row, int | None]] = [(first, None)]
    order += [(row, layer) for layer in range(config.num_hidden_layers) for row in layered]
    order += [(row, None) for row in last]
    return [Expected(row, layer, row.shape(config)) for row, layer in order if row.shape is not None]


def row_of(config: ModelConfig, name: str) -> Row:
    """Returns the row of a tensor of a model whose family has one for each of its tensors.

    Raises:
        InternalError: There is none; `read_checkpoint` has refused the model, or a caller has not.
    """
    row = config.family.row_of(name) if config.family else None
    if row is None:
        raise InternalError(f"{name!r} has no row in the table of {config.model_type}.")
    return row
