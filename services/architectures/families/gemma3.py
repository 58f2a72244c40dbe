"""Gemma 3: the text models, and the multimodal ones from 4B up (transformers `modeling_gemma3.py`).

A multimodal checkpoint nests the text model's configuration under `text_config` and its tensors under `language_model`. Only its
text model is changed; the vision tower and the projector are copied.
"""

from services.architectures.families.gemma2 import GEMMA_DEFAULTS, GEMMA_NORMS
from services.architectures.family import (
    ATTENTION,
    ATTENTION_BIAS,
    HEAD_NORMS,
    MLP,
    OUTSIDE_LAYERS,
    Family,
)

ROWS = (*OUTSIDE_LAYERS, *ATTENTION, *ATTENTION_BIAS, *HEAD_NORMS, *MLP, *GEMMA_NORMS)
DEFAULTS = {**GEMMA_DEFAULTS, "vocab_size": 262208, "max_position_embeddings": 131072, "rope_theta": 1e6}

GEMMA3 = Family(
    name="gemma3",
    title="Gemma 3",
    model_types=("gemma3_text",),
    architecture="Gemma3ForCausalLM",
    rows=ROWS,
    config_defaults=DEFAULTS,
    gguf="gemma3",
)
"""The text models."""

GEMMA3_MULTIMODAL = Family(
    name="gemma3-multimodal",
    title="Gemma 3, multimodal",
    model_types=("gemma3",),
    architecture="Gemma3ForConditionalGeneration",
    rows=ROWS,
    config_defaults=DEFAULTS,
    config_key="text_config",
    renames=(
        ("language_model.lm_head.", "lm_head."),
        ("language_model.model.", "model.language_model."),
        ("vision_tower.vision_model.", "model.vision_tower."),
        ("vision_tower.", "model.vision_tower."),
        ("multi_modal_projector.", "model.multi_modal_projector."),
    ),
    text_prefixes=("model.language_model.", "model."),
    towers=("model.vision_tower.", "model.multi_modal_projector."),
    gguf="gemma3",
)
"""The multimodal models; a GGUF file holds their text model."""
