"""Generation: load a model, build prompts, generate for many of them at once, score texts. Knows no queue and no volume."""

from services.generate.chat_template import ChatTemplate, TemplateOptions
from services.generate.embedding import embed
from services.generate.engine import Engine
from services.generate.loading import LoadedModel, load_model, resolve_device
from services.generate.perplexity import Score, Window, score_window, window_sizes, windows_of
from services.generate.prompts import BuiltPrompt, build_prompt, prompt_steps, template_name
from services.generate.request import (
    Completion,
    Event,
    GenerationRequest,
    OutputFailed,
    OutputFinished,
    TokenGenerated,
    TokenLogprob,
)
from services.generate.sequence_memory import MemoryShortage
from services.generate.served_model import ServedModel, read_served_gguf, read_served_model
from services.generate.truncation import build_fitting

__all__ = [
    "BuiltPrompt",
    "ChatTemplate",
    "Completion",
    "Engine",
    "Event",
    "GenerationRequest",
    "LoadedModel",
    "MemoryShortage",
    "OutputFailed",
    "OutputFinished",
    "Score",
    "ServedModel",
    "TemplateOptions",
    "TokenGenerated",
    "TokenLogprob",
    "Window",
    "build_fitting",
    "build_prompt",
    "embed",
    "load_model",
    "prompt_steps",
    "read_served_gguf",
    "read_served_model",
    "resolve_device",
    "score_window",
    "template_name",
    "window_sizes",
    "windows_of",
]
