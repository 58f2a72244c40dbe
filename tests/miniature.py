"""The miniature model of `examples/miniature` and its two adapters, as tests use them."""

import zipfile
from pathlib import Path

MINIATURE = Path(__file__).parents[1] / "examples" / "miniature"
ADAPTERS = ["chinese-llama-lora", "chinese-alpaca-lora"]
"""In the order in which they are merged."""


def unpack_adapters(folder: Path) -> list[Path]:
    """Unpacks the adapters into the folder and returns the folder of each, in the order of merging."""
    for name in ADAPTERS:
        with zipfile.ZipFile(MINIATURE / f"{name}.zip") as archive:
            archive.extractall(folder / name)
    return [folder / name for name in ADAPTERS]
