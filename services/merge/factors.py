"""Factors of a LoRA pair as matrices of one tensor's change."""

import torch

from services.adapters.lora_tensors import LoraPair
from services.checkpoints.tensor_reader import TensorReader


def pair_factors(reader: TensorReader, pair: LoraPair) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns A and B of a pair; of a pair for all experts the part of one expert's tensor (see services/adapters/expert_packs.py)."""
    a, b = reader.view(pair.a), reader.view(pair.b)
    expert = pair.expert
    if expert is None:
        return a, b
    a = a.reshape(expert.count, -1, a.shape[-1])[expert.number]
    b = b.reshape(b.shape[0], -1, expert.count)[expert.rows, :, expert.number]
    return a.contiguous(), b.contiguous()
