"""Tables about GGUF that are kept without the `gguf` package, held against the package."""

import re
import struct
from pathlib import Path

import gguf
import pytest
from gguf.quants import _type_traits

from services.architectures.families import FAMILIES
from services.architectures.gguf_families import GGUF_FAMILIES
from services.architectures.gguf_layout import DECODED, FLOATS
from services.architectures.gguf_values import shortest_decimal
from services.files.gguf_header import GGML_TYPES
from services.files.gguf_origin import gguf_origin

ROOT = Path(__file__).parents[2]
ARCHITECTURES = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}


@pytest.mark.parametrize("architecture", GGUF_FAMILIES)
def test_names_are_those_of_the_packages_map(architecture: str) -> None:
    family, names = GGUF_FAMILIES[architecture], gguf.get_tensor_name_map(ARCHITECTURES[architecture], 3)
    for name in family.names:
        stem = name.format(2)
        assert family.gguf_name(f"{stem}.weight") == names.get_name(f"{stem}.weight", (".weight",)), name


def test_the_documentation_lists_the_architectures() -> None:
    section = (ROOT / "docs" / "families.md").read_text().split("## GGUF files that are read")[1]
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \|$", section, re.MULTILINE)
    assert [architecture for architecture, _ in rows] == list(GGUF_FAMILIES)
    assert all(FAMILIES[model_type].gguf == architecture for architecture, model_type in rows)


def test_types_are_the_packages() -> None:
    for number, (name, block, size) in GGML_TYPES.items():
        kind = gguf.GGMLQuantizationType(number)
        assert (kind.name, gguf.GGML_QUANT_SIZES[kind]) == (name, (block, size))


def test_every_type_that_the_package_decodes_is_taken() -> None:
    assert {*DECODED, *FLOATS} == {kind.name for kind in _type_traits} | {"F32", "F16"}


@pytest.mark.parametrize(
    ("stored", "decimal"), [(1e-5, 1e-5), (1e-6, 1e-6), (500000.0, 500000.0), (0.1, 0.1), (1 / 3, 0.33333334)]
)
def test_a_float32_is_read_as_the_decimal_that_was_written(stored: float, decimal: float) -> None:
    (found,) = struct.unpack("<f", struct.pack("<f", stored))
    assert shortest_decimal(found) == decimal


def test_a_float64_stays_as_it_is() -> None:
    assert shortest_decimal(1.0000000001) == 1.0000000001


def test_the_origin_is_bounded() -> None:
    metadata = {
        "general.name": "x" * 5000,
        "general.license": 3,
        "general.base_model.count": 2**40,
        "general.base_model.7.name": "y",
    }
    assert gguf_origin(metadata) == {"name": "x" * 2000, "base_models": [{"name": "y"}]}
