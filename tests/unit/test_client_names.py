"""Public names of the client, imported at their first use."""

import subprocess
import sys

import graftwerk
import pytest


def test_every_public_name_is_importable_and_listed() -> None:
    for name in graftwerk.__all__:
        assert getattr(graftwerk, name).__name__ == name
    assert set(graftwerk.__all__) <= set(dir(graftwerk))


def test_a_name_that_there_is_not_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Cleint'"):
        _ = graftwerk.Cleint


def test_the_package_alone_imports_no_library() -> None:
    code = "import sys, graftwerk; print(sorted({'httpx', 'pydantic', 'rich', 'typer'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
