"""Keys and values of the beginnings of prompts, which later prompts with the same beginning do not read again.

A block is one whole chunk of a prompt. Its key is a hash over the tokens from the beginning of the prompt to its end, as in vLLM's
automatic prefix caching. A prompt is read in the same chunks with and without cached ones, so its logits are the same bits.
Generated tokens are not kept: a forward pass of one token rounds otherwise than one of a chunk.
"""

from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

import torch


@dataclass(frozen=True, slots=True)
class Block:
    """Keys and values of one chunk, (kv heads, tokens, head_dim) for each layer, which belong to the model `owner`."""

    owner: str
    keys: Sequence[torch.Tensor]
    values: Sequence[torch.Tensor]

    @property
    def size_bytes(self) -> int:
        """Memory of the tensors."""
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values))


@dataclass(slots=True)
class PrefixCache:
    """Blocks of several models of at most `limit_bytes` together; the least recently used ones are dropped first.

    Counters: `hits` of prompts with a block that was found, `reused_tokens` of the tokens of prompts that were found, `read_tokens` of
    those that were computed, `evictions` of blocks that were dropped for others or for running sequences.
    """

    limit_bytes: int
    size_bytes: int = 0
    hits: int = 0
    evictions: int = 0
    reused_tokens: int = 0
    read_tokens: int = 0
    _blocks: OrderedDict[bytes, Block] = field(default_factory=OrderedDict)

    def get(self, key: bytes) -> Block | None:
        """Returns the block with this key."""
        return self._blocks.get(key)

    def put(self, key: bytes, block: Block) -> None:
        """Keeps a block whose key is new, unless it is larger than the limit."""
        if block.size_bytes > self.limit_bytes:
            return
        self._blocks[key] = block
        self.size_bytes += block.size_bytes
        self.limit_to(self.limit_bytes)

    def limit_to(self, limit_bytes: int) -> None:
        """Sets the limit and drops what is beyond it."""
        self.limit_bytes = limit_bytes
        while self.size_bytes > limit_bytes:
            self.size_bytes -= self._blocks.popitem(last=False)[1].size_bytes
            self.evictions += 1

    def touch(self, keys: Sequence[bytes]) -> None:
        """Marks the blocks of a prompt as used; a later one, which is of no use without those before it, is dropped first."""
        for key in reversed(keys):
            if key in self._blocks:
                self._blocks.move_to_end(key)

    def forget(self, owner: str) -> None:
        """Drops the blocks of a model."""
        for key in [key for key, block in self._blocks.items() if block.owner == owner]:
            self.size_bytes -= self._blocks.pop(key).size_bytes


def chain_key(before: bytes, token_ids: Iterable[int]) -> bytes:
    """Returns the key of a block from the key of the one before it and its own tokens."""
    return blake2b(before + array("q", token_ids).tobytes(), digest_size=16).digest()
