"""The OpenAI-compatible endpoints: the same jobs in that API's shapes.

Source of the shapes: OpenAI's API reference and the types of its Python client (github.com/openai/openai-python).
"""

from api.openai.fixed_model import FixedModel
from api.openai.views import api

__all__ = ["FixedModel", "api"]
