"""Another server that generates: which models it serves, what it is asked, what it answers.

It speaks OpenAI's API: vLLM, llama.cpp's server, Ollama, another Graftwerk. `GENERATE_BACKEND_URL` names it.
"""

from services.backend.calls import Call, call_of, check_forwardable, may_forward, seed_of
from services.backend.chunks import Chunk
from services.backend.server import FORWARDED_HEADER, SERVICE_HEADER, Backend, ServedModel

__all__ = [
    "FORWARDED_HEADER",
    "SERVICE_HEADER",
    "Backend",
    "Call",
    "Chunk",
    "ServedModel",
    "call_of",
    "check_forwardable",
    "may_forward",
    "seed_of",
]
