"""Beam search: transformers' own, one token of all beams at a time, after the prompt was read in chunks like any other.

Its loop runs in a thread that waits for its turn after each token, so that other sequences run between: the thread and that of the engine never run
at the same time.
"""

import threading
from collections.abc import Sequence
from typing import Any

import torch
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedConfig,
    StoppingCriteria,
    StoppingCriteriaList,
)

from services.errors import NonFiniteLogits
from services.generate.loading import LoadedModel
from services.generate.prompt_cache import PromptCache
from services.generate.request import Event
from services.generate.sampler import Choice, own_processors
from services.generate.sequence import SequenceState
from services.sampling import Sampling
from services.tokenizers import Tokenizer


class BeamSearch:
    """One search, whose sequences each get the next best beam at its end."""

    def __init__(self, loaded: LoadedModel, sequences: Sequence[SequenceState], prompt: PromptCache) -> None:
        """Takes the keys and values of the prompt, whose cache is empty afterwards."""
        self.sequences = sequences
        self.is_canceled = False
        self.has_ended = False
        self._loaded = loaded
        self._cache = _repeated(prompt, loaded.model.config, sequences[0].request.sampling.num_beams)
        self._events: list[Event] = []
        self._error: BaseException | None = None
        self._turn, self._rest = threading.Semaphore(0), threading.Semaphore(0)
        self._random: list[torch.Tensor] = []
        self._thread = threading.Thread(target=self._run, name="beam search", daemon=True)

    def step(self) -> list[Event]:
        """Searches one token further; returns the events of all sequences at the end. Raises what the search raises."""
        cuda = self._loaded.device if self._loaded.device.type == "cuda" else None
        # transformers draws from the global generators, whose states are those of the search during its turns alone.
        with torch.random.fork_rng([] if cuda is None else [cuda]):
            if self._thread.ident is None:
                torch.manual_seed(self.sequences[0].seed)
                self._thread.start()
            else:
                torch.set_rng_state(self._random[0])
                if cuda is not None:
                    torch.cuda.set_rng_state(self._random[1], cuda)
            self._turn.release()
            self._rest.acquire()
            self._random = [torch.get_rng_state()] + (
                [] if cuda is None else [torch.cuda.get_rng_state(cuda)]
            )
        if self._error is not None:
            raise self._error
        return self._events

    def end(self) -> None:
        """Ends the search without events."""
        self.is_canceled = True
        while not self.has_ended:
            self.step()

    def pause(self) -> bool:
        """Called by the search after each token: waits for the next turn; returns True if it must end."""
        self._rest.release()
        self._turn.acquire()
        return self.is_canceled

    def _run(self) -> None:
        self._turn.acquire()
        try:
            self._events = _search(self._loaded, self.sequences, self, self._cache)
        except Exception as error:  # noqa: BLE001  (the thread of the engine raises it)
            self._error = error
        self.has_ended = True
        self._rest.release()


class _Pause(StoppingCriteria):
    """Waits for the next turn after each token, and ends the search of all beams once the request is canceled."""

    def __init__(self, search: BeamSearch) -> None:
        self._search = search

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Returns a flag for each beam of ids (beams, length)."""
        return torch.full((len(input_ids),), self._search.pause(), device=input_ids.device)


class _StopStrings(StoppingCriteria):
    """Ends beams at the token that completes a stop string, as their sequence will."""

    def __init__(self, sequence: SequenceState, tokenizer: Tokenizer) -> None:
        self._sequence, self._tokenizer = sequence, tokenizer
        self._prompt_length = len(sequence.request.prompt_token_ids)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Returns a flag for each beam of ids (beams, length)."""
        new_ids = input_ids[:, self._prompt_length :].tolist()
        return torch.tensor([self._is_complete(ids) for ids in new_ids], device=input_ids.device)

    def _is_complete(self, token_ids: list[int]) -> bool:
        text = self._tokenizer.decode(token_ids)
        if not any(stop in text for stop in self._sequence.stop_strings):
            return False
        found = self._sequence.new_stop_filter()  # which may yet hold back the end of this text
        for token_id in token_ids:
            found.feed(token_id)
        return found.stopped


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


@torch.inference_mode()
def _repeated(prompt: PromptCache, config: PreTrainedConfig, beams: int) -> DynamicCache:
    """Returns the keys and values of a prompt for each beam, layer by layer out of its own cache.

    Those of its last token are left out: the search begins with the logits after it.
    """
    cache = DynamicCache(config=config)
    for layer, (keys, values) in enumerate(zip(*prompt.states(last=True), strict=True)):
        key_states, value_states = (side[:, :, :-1].expand(beams, -1, -1, -1) for side in (keys, values))
        cache.update(key_states, value_states, layer)
    return cache


def _search(
    loaded: LoadedModel, sequences: Sequence[SequenceState], search: BeamSearch, cache: DynamicCache
) -> list[Event]:
    """Searches to the end, and returns the events of all sequences."""
    request = sequences[0].request
    prompt = torch.tensor([list(request.prompt_token_ids)], device=loaded.model.device)
    end_ids = sorted(loaded.tokenizer.eos_ids | request.stop_token_ids)
    model: Any = loaded.model
    own = [_FiniteCheck(), *own_processors(request.sampling, prompt.shape[1])]
    ends: list[StoppingCriteria] = [_StopStrings(sequences[0], loaded.tokenizer), _Pause(search)]
    with torch.inference_mode():
        try:
            found = model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                past_key_values=cache,
                generation_config=_config(request.sampling, len(sequences), end_ids, loaded.tokenizer.pad_id),
                logits_processor=LogitsProcessorList(own),
                stopping_criteria=StoppingCriteriaList(ends),
            )
        except NonFiniteLogits as error:
            return [sequence.fail(error) for sequence in sequences]
    if search.is_canceled:
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
