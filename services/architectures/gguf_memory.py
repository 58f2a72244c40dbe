"""Memory that llama.cpp takes for a GGUF model, from its headers."""

from services.architectures.checkpoint import Checkpoint
from services.generate_engines import GgufLimits

CACHE_WIDTH = 2
"""Bytes of a number in the KV cache: float16."""

BATCH_TOKENS = 512
"""Tokens that are computed at once (llama.cpp's n_ubatch)."""

BUFFER_WIDTHS = 12
"""Rows of the widest layer that the buffers have for each token of a batch, in float32."""

PROCESS_BYTES = 96 * 2**20
"""Memory of the process before its model."""


def context_of(checkpoint: Checkpoint, limits: GgufLimits) -> int:
    """Returns the tokens of a prompt and its output: the model's own limit at most."""
    return min(limits.context, checkpoint.config.max_position_embeddings)


def llama_cpp_bytes(checkpoint: Checkpoint, limits: GgufLimits) -> int:
    """Returns the bytes of a process with this model: its files, the KV cache of all slots, the buffers of a batch."""
    config = checkpoint.config
    row = config.num_key_value_heads * config.head_dim * CACHE_WIDTH
    cache = 2 * config.num_hidden_layers * row * limits.slots * context_of(checkpoint, limits)
    widest = max(config.hidden_size, config.intermediate_size)
    buffers = 4 * BATCH_TOKENS * (config.vocab_size + BUFFER_WIDTHS * widest)
    weights = sum(path.stat().st_size for path in checkpoint.weight_files)
    return PROCESS_BYTES + weights + cache + buffers
