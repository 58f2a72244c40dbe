"""Prompt templates: conversations and instructions, written the way that a model was trained with."""

from services.templates.jinja_text import JINJA_NAMES, jinja_text, name_of_jinja_text
from services.templates.message import (
    MESSAGE_LIMIT,
    CalledFunction,
    Message,
    MessageToolCall,
    Role,
    calls_as_text,
    check_text,
    tools_as_users,
)
from services.templates.rendering import render
from services.templates.resolution import (
    OWN_TEMPLATE,
    RAW_TEMPLATE,
    Conversation,
    PromptParts,
    RenderedPrompt,
    resolve,
)
from services.templates.table import (
    BOS,
    EOS,
    TEMPLATES,
    Segment,
    Special,
    Template,
    Text,
    find_template,
)

__all__ = [
    "BOS",
    "EOS",
    "JINJA_NAMES",
    "MESSAGE_LIMIT",
    "OWN_TEMPLATE",
    "RAW_TEMPLATE",
    "TEMPLATES",
    "CalledFunction",
    "Conversation",
    "Message",
    "MessageToolCall",
    "PromptParts",
    "RenderedPrompt",
    "Role",
    "Segment",
    "Special",
    "Template",
    "Text",
    "calls_as_text",
    "check_text",
    "find_template",
    "jinja_text",
    "name_of_jinja_text",
    "render",
    "resolve",
    "tools_as_users",
]
