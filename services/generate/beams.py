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
    """Ends the search of all beams once the request is canceled."""

    def __init__(self, is_canceled: Callable[[], bool]) -> None:
        self._is_canceled = is_canceled

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Returns a flag for each beam of ids (beams, length)."""
        return torch.full((len(input_ids),), self._is_canceled(), device=input_ids.device)


class _FiniteCheck(LogitsProcessor):
    """Refuses NaN in scores; minus infinity comes from other processors."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Returns the scores (beams, vocabulary) unchanged.

        Raises:
            NonFiniteLogits: a score is NaN.
        """
        if bool(scores.isnan().any()):
            raise NonFiniteLogits("The model computed NaN or infinity during the beam search.")
        return scores


def search_beams(
    loaded: LoadedModel, sequences: Sequence[SequenceState], is_canceled: Callable[[], bool]
) -> list[Event]:
    """Searches once, and returns the events of all sequences: each gets the next best beam.

    Beams are cut at stop strings afterwards, since the best beam is known only at the end. The search ends early only
    if another thread cancels the request.
    """
    request = sequences[0].request
    if request.sampling.max_new_tokens == 0:
        return [sequence.finish("length") for sequence in sequences]
    prompt = torch.tensor([list(request.prompt_token_ids)], device=loaded.model.device)
    end_ids = sorted(loaded.tokenizer.eos_ids | request.stop_token_ids)
    model: Any = loaded.model
    own = [_FiniteCheck(), *own_processors(request.sampling, prompt.shape[1])]
    # transformers draws from the global generator, whose state is restored afterwards.
    devices = [loaded.device] if loaded.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.inference_mode():
        torch.manual_seed(sequences[0].seed)
        try:
            found = model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                generation_config=_config(request.sampling, len(sequences), end_ids, loaded.tokenizer.pad_id),
                logits_processor=LogitsProcessorList(own),
                stopping_criteria=StoppingCriteriaList([_Canceled(is_canceled)]),
            )
        except NonFiniteLogits as error:
            return [sequence.fail(error) for sequence in sequences]
    if is_canceled():
        return [sequence.finish("canceled") for sequence in sequences]
    beams = found[:, prompt.shape[1] :].tolist()
    return [
        event for sequence, beam in zip(sequences, beams, strict=True) for event in _events(sequence, beam)
    ]


def _config(sampling: Sampling, outputs: int, end_ids: list[int], pad_id: int | None) -> GenerationConfig:
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
        num_return_sequences=outputs,
        max_new_tokens=sampling.max_new_tokens,
        min_new_tokens=sampling.min_new_tokens or None,
        repetition_penalty=float(sampling.repetition_penalty),
        no_repeat_ngram_size=sampling.no_repeat_ngram_size,
        eos_token_id=end_ids or None,
        pad_token_id=pad_id if pad_id is not None else (end_ids or [0])[0],
        **({} if greedy else drawing),
    )
    return config


def _events(sequence: SequenceState, beam: list[int]) -> list[Event]:
    """Returns the events of a whole beam; tokens after its end are padding."""
    events: list[Event] = []
    for token_id in beam:
        if not sequence.is_finished:
            events += sequence.accept(Choice(token_id))
    return events if sequence.is_finished else [*events, sequence.finish("length")]
