"""`/v1/messages`: Anthropic's API of conversations, as the same jobs.

Source of the shapes: Anthropic's API reference and the types of its Python client (github.com/anthropics/anthropic-sdk-python).
"""

from api.anthropic.views import api

__all__ = ["api"]
