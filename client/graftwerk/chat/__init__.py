"""`graftwerk chat`: a conversation in which each turn is a `generate` job with all previous turns."""

from graftwerk.chat.conversation import Conversation
from graftwerk.chat.session import converse

__all__ = ["Conversation", "converse"]
