"""Text of outputs: streamed in parts, ended by stop strings and by tokens."""

from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from services.errors import InvalidRequest
from services.generate import (
    Engine,
    GenerationRequest,
    LoadedModel,
    TokenGenerated,
)
from services.sampling import Sampling
from tests.contract.generate.engine_driver import alone, drained, outputs_of


def test_streamed_texts_add_up_to_the_final_text_of_sentencepiece(
    loaded: LoadedModel, folder: Path, prompts: list[list[int]]
) -> None:
    processor: Any = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    engine = Engine(loaded, slots=4)
    for seed, prompt in enumerate(prompts):
        engine.submit(GenerationRequest(prompt, Sampling(seed=seed, temperature=1.5, max_new_tokens=60)))
    events = drained(engine)
    for request_id, [output] in outputs_of(events).items():
        deltas = [
            event for event in events if isinstance(event, TokenGenerated) and event.request_id == request_id
        ]
        assert [event.token_id for event in deltas] == output.token_ids
        assert "".join(event.text for event in deltas) == output.text
        assert output.text == processor.decode([token for token in output.token_ids if token != 2])


def test_a_stop_string_across_tokens_ends_the_output_before_it(
    loaded: LoadedModel, prompts: list[list[int]]
) -> None:
    free = Sampling(do_sample=False, max_new_tokens=40)
    [whole] = alone(loaded, GenerationRequest(prompts[0], free))
    borders = len(loaded.tokenizer.decode(whole.token_ids[:9]))
    stop = whole.text[borders - 2 : borders + 2]
    assert len(stop) == 4
    before = whole.text[: whole.text.index(stop)]

    engine = Engine(loaded)
    engine.submit(GenerationRequest(prompts[0], free, stop=["never comes", stop]))
    events = drained(engine)
    [[output]] = outputs_of(events).values()
    assert (output.text, output.finish_reason) == (before, "stop")
    assert output.token_ids == whole.token_ids[: len(output.token_ids)]
    assert stop in loaded.tokenizer.decode(output.token_ids)
    assert "".join(event.text for event in events if isinstance(event, TokenGenerated)) == before


def test_half_a_stop_string_at_the_end_is_part_of_the_text(
    loaded: LoadedModel, prompts: list[list[int]]
) -> None:
    free = Sampling(do_sample=False, max_new_tokens=12)
    [whole] = alone(loaded, GenerationRequest(prompts[0], free))
    [output] = alone(loaded, GenerationRequest(prompts[0], free, stop=[whole.text[-3:] + "!?"]))
    assert (output.text, output.finish_reason) == (whole.text, "length")


def test_the_end_token_is_counted_and_never_text(loaded: LoadedModel, prompts: list[list[int]]) -> None:
    sampling = Sampling(logit_bias={2: 100}, max_new_tokens=20, min_new_tokens=4, do_sample=False)
    [output] = alone(loaded, GenerationRequest(prompts[0], sampling))
    assert output.token_ids[4:] == [2]
    assert output.text == loaded.tokenizer.decode(output.token_ids[:4])
    assert output.finish_reason == "stop"
    assert (output.prompt_tokens, len(output.token_ids)) == (len(prompts[0]), 5)


def test_the_end_token_of_a_template_ends_an_output(loaded: LoadedModel, prompts: list[list[int]]) -> None:
    sampling = Sampling(logit_bias={77: 100}, max_new_tokens=20, do_sample=False)
    [output] = alone(loaded, GenerationRequest(prompts[0], sampling, stop_token_ids=frozenset({77})))
    assert (output.token_ids, output.text, output.finish_reason) == ([77], "", "stop")


def test_an_end_token_beyond_the_vocabulary_is_refused(loaded: LoadedModel, prompts: list[list[int]]) -> None:
    request = GenerationRequest(prompts[0], Sampling(), stop_token_ids=frozenset({7, loaded.rows}))
    with pytest.raises(InvalidRequest, match=f"stop_token_ids has {loaded.rows}, and the model has"):
        Engine(loaded, slots=1).submit(request)


def test_the_stop_string_that_ended_an_output_is_named(loaded: LoadedModel, prompts: list[list[int]]) -> None:
    [whole] = alone(loaded, GenerationRequest(prompts[0], Sampling(do_sample=False, max_new_tokens=40)))
    assert whole.stop_string is None
    first, second = whole.text[5:8], whole.text[6:9]
    sampling = Sampling(do_sample=False, max_new_tokens=40, stop=["never there", second, first])
    [output] = alone(loaded, GenerationRequest(prompts[0], sampling))
    assert output.stop_string == min((first, second), key=whole.text.find)
    assert output.text == whole.text[: whole.text.find(output.stop_string)]
