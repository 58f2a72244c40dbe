"""Another server that generates: its models, the calls to it and its streams.

It speaks OpenAI's API: vLLM, llama.cpp's server, Ollama, another Graftwerk. `GENERATE_BACKEND_URL` names it.
"""

from services.backend.calls import Call, call_of, check_forwardable, seed_of
from services.backend.chunks import CallPart, Chunk
from services.backend.dialects import own_vllm_fields
from services.backend.llama_cpp import check_forms, llama_cpp_fields
from services.backend.server import FORWARDED_HEADER, SERVICE_HEADER, Backend, ServedModel

__all__ = [
    "FORWARDED_HEADER",
    "SERVICE_HEADER",
    "Backend",
    "Call",
    "CallPart",
    "Chunk",
    "ServedModel",
    "call_of",
    "check_forms",
    "check_forwardable",
    "llama_cpp_fields",
    "own_vllm_fields",
    "seed_of",
]
