"""Checks of a request to an engine, against the model that is to answer it."""

from dataclasses import replace

from services.errors import InvalidRequest, PromptTooLong, VocabularyMismatch
from services.generate.request import GenerationRequest


def checked(
    request: GenerationRequest, *, bos_id: int | None, rows: int, context_length: int
) -> GenerationRequest:
    """Returns the request; an empty prompt becomes the beginning-of-text token.

    Args:
        rows: Number of rows of the model's embeddings.
        context_length: Largest number of tokens of a prompt and its output.

    Raises:
        PromptTooLong: prompt and new tokens together exceed the model's context.
        VocabularyMismatch: the prompt has tokens that the model does not have.
        InvalidRequest: the prompt is empty and the model has no beginning-of-text token, `logit_bias` or `stop_token_ids`
            name tokens that the model does not have, or a beam search has a grammar.
    """
    if not request.prompt_token_ids:
        if bos_id is None:
            raise InvalidRequest("The prompt is empty and this model has no beginning-of-text token.")
        request = replace(request, prompt_token_ids=[bos_id])
    largest = max(request.prompt_token_ids)
    if largest >= rows or min(request.prompt_token_ids) < 0:
        raise VocabularyMismatch(
            f"The prompt has the token {largest} and the model has {rows} rows of embeddings.",
            "The tokenizer does not belong to the model: put the right one into its folder.",
        )
    sampling = request.sampling
    if any(token_id >= rows for token_id in sampling.logit_bias):
        raise InvalidRequest(f"logit_bias names tokens beyond the model's {rows}.")
    beyond = [token_id for token_id in request.stop_token_ids if token_id >= rows]
    if beyond:
        raise InvalidRequest(f"stop_token_ids has {min(beyond)}, and the model has {rows} tokens.")
    if request.grammar is not None and sampling.num_beams > 1:
        raise InvalidRequest("A beam search follows no grammar.", "Set num_beams to 1.")
    _check_length(len(request.prompt_token_ids), sampling.max_new_tokens, context_length)
    return request


def _check_length(prompt_tokens: int, max_new_tokens: int, context_length: int) -> None:
    if prompt_tokens + max_new_tokens <= context_length:
        return
    room = context_length - prompt_tokens
    raise PromptTooLong(
        f"The prompt has {prompt_tokens} tokens and {max_new_tokens} new ones are requested; "
        f"the model's context is {context_length}.",
        f"Lower max_new_tokens to {room} at most." if room > 0 else "Shorten the prompt.",
    )
