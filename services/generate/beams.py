"""Beam search: transformers' own, one request at a time."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from services.errors import NonFiniteLogits
from services.generate.loading import LoadedModel
from services.generate.request import Event
from services.generate.sampler import Choice, own_processors
from services.generate.sequence import SequenceState
from services.sampling import Sampling


class _Canceled(StoppingCriteria):
    """Ends the search of every beam once the request is canceled."""

    def __init__(self, is_canceled: Callable[[], bool]) -> None:
        self._is_canceled = is_canceled

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Ids (beams, length) to a flag for each beam."""
        return torch.full((len(input_ids),), self._is_canceled(), device=input_ids.device)


class _FiniteCheck(LogitsProcessor):
    """Refuses scores that are no numbers; minus infinity is what other processors write."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores (beams, vocabulary), returned as they are.

        Raises:
            NonFiniteLogits
        """
        if bool(scores.isnan().any()):
            raise NonFiniteLogits("The model computed NaN or infinity during the beam search.")
        return scores


def search_beams(
    loaded: LoadedModel, answers: Sequence[SequenceState], is_canceled: Callable[[], bool]
) -> list[Event]:
    """Search once, and give each answer the next best beam.

    The beams are cut at stop texts afterwards: a search cannot know which beam will win. It ends early only
    when the request is canceled, which another thread can ask for.
    """
    request = answers[0].request
    if request.sampling.max_new_tokens == 0:
        return [answer.finish("length") for answer in answers]
    prompt = torch.tensor([list(request.prompt_token_ids)], device=loaded.model.device)
    end_ids = sorted(loaded.tokenizer.eos_ids | request.stop_token_ids)
    model: Any = loaded.model
    own = [_FiniteCheck(), *own_processors(request.sampling, prompt.shape[1])]
    # The generator is the process's own, as transformers offers no other: it is put back afterwards.
    devices = [loaded.device] if loaded.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.inference_mode():
        torch.manual_seed(answers[0].seed)
        try:
            found = model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                generation_config=_config(request.sampling, len(answers), end_ids, loaded.tokenizer.pad_id),
                logits_processor=LogitsProcessorList(own),
                stopping_criteria=StoppingCriteriaList([_Canceled(is_canceled)]),
            )
        except NonFiniteLogits as error:
            return [answer.fail(error) for answer in answers]
    if is_canceled():
        return [answer.finish("canceled") for answer in answers]
    beams = found[:, prompt.shape[1] :].tolist()
    return [event for answer, beam in zip(answers, beams, strict=True) for event in _taken(answer, beam)]


def _config(sampling: Sampling, answers: int, end_ids: list[int], pad_id: int | None) -> GenerationConfig:
    greedy = sampling.greedy
    drawing: dict[str, Any] = {
        "temperature": float(sampling.temperature),
        "top_k": sampling.top_k,
        "top_p": float(sampling.top_p),
        "min_p": sampling.min_p,
        "typical_p": 1.0 if sampling.typical_p is None else sampling.typical_p,
    }
    make: Any = GenerationConfig
    config: GenerationConfig = make(
        do_sample=not greedy,
        num_beams=sampling.num_beams,
        num_return_sequences=answers,
        max_new_tokens=sampling.max_new_tokens,
        min_new_tokens=sampling.min_new_tokens or None,
        repetition_penalty=float(sampling.repetition_penalty),
        no_repeat_ngram_size=sampling.no_repeat_ngram_size,
        eos_token_id=end_ids or None,
        pad_token_id=pad_id if pad_id is not None else (end_ids or [0])[0],
        **({} if greedy else drawing),
    )
    return config


def _taken(answer: SequenceState, beam: list[int]) -> list[Event]:
    """The events of a whole beam; what follows its end is padding."""
    events: list[Event] = []
    for token_id in beam:
        if not answer.is_over:
            events += answer.accept(Choice(token_id))
    return events if answer.is_over else [*events, answer.finish("length")]
