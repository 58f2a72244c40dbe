"""`/v1/responses`: OpenAI's newer API of conversations, whose responses can be kept, retrieved and continued.

A response is a generate job. What its record does not have of the response is kept with it as a note (`kept.py`).
"""

from api.openai.responses_api.views import api

__all__ = ["api"]
