"""The API's process never holds a tensor library: its image has none."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "peft", "sentencepiece", "safetensors", "numpy", "tiktoken", "tokenizers")


def test_the_application_imports_no_tensor_library(tmp_path: Path) -> None:
    program = (
        f"import sys, api.wsgi; print(sorted(set({HEAVY}) & set(sys.modules)), api.wsgi.application.name)"
    )
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("GRAFTWERK_")}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=ROOT,
        env=inherited | {"GRAFTWERK_MODELS_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stdout.strip() == "[] api", done.stderr
