"""Outputs of chat models: thinking, the answer, and calls of tools, told apart in the text that a model writes."""

from services.chat_output.call_stream import ParsedCall
from services.chat_output.formats import (
    CALL_FORMATS,
    END_THINK,
    THINK,
    CallFormat,
    OutputForm,
    call_format_of,
    thinks,
)
from services.chat_output.parser import OutputParser, OutputParts

__all__ = [
    "CALL_FORMATS",
    "END_THINK",
    "THINK",
    "CallFormat",
    "OutputForm",
    "OutputParser",
    "OutputParts",
    "ParsedCall",
    "call_format_of",
    "thinks",
]
