"""A running process of llama.cpp with one model and its adapters."""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from services.engines.engine_server import EngineServer, ServerProgram
from services.engines.hidden_tokens import HiddenTokens
from services.engines.llama_cpp import LlamaCppOptions, program_command
from services.engines.llama_cpp_request import Part, Tokens, body_of, refusal, score_body, tokens_of
from services.engines.output import OutputRequest, ServedToken, TakeTokens
from services.errors import NotReady

FIRST_WHOLE_TOKENS = 8
"""Tokens that are requested at once after tokens that were left out and not found; twice as many the next time."""

SCORED_TOKENS = 100
"""Most likely tokens among which a token that was left out is looked for before all are."""

logger = logging.getLogger("graftwerk.llama_cpp")


class LlamaCppServer(EngineServer):
    """llama.cpp with one model and its adapters.

    An output ends without an error if the model has written a token that ends every output.
    """

    def __init__(self, name: str, options: LlamaCppOptions, token_bytes: Sequence[bytes]) -> None:
        """Starts the process.

        Args:
            name: The model's name.
            token_bytes: Bytes of each token, b"" for special tokens.
        """
        self._hidden = HiddenTokens(token_bytes)
        program = ServerProgram(
            engine="llama.cpp",
            command=partial(program_command, options),
            logger=logger,
            start_seconds=options.start_seconds,
            start_setting="LLAMA_CPP_START_SECONDS",
            ended_hint="Try again; if it happens each time, the file is damaged: convert the model to huggingface to find "
            "the fault.",
        )
        super().__init__(name, program)

    async def _complete(self, request: OutputRequest, take: TakeTokens) -> None:
        """Generates an output: in a stream, and at once where the stream leaves out tokens that cannot be found.

        An output with a grammar is generated at once, since a grammar cannot go on within a text.
        """
        ids: list[int] = []
        limit, whole = request.sampling.max_new_tokens, FIRST_WHOLE_TOKENS

        def keep(tokens: Sequence[ServedToken], *, prompt: Sequence[ServedToken] = ()) -> None:
            ids.extend(token.token_id for token in tokens)
            take(tokens, prompt=prompt)

        while True:
            if request.grammar is None and await self._streamed(
                request, Part([*ids], limit - len(ids), streamed=True), keep
            ):
                return
            count = limit - len(ids) if request.grammar else min(whole, limit - len(ids))
            if await self._at_once(request, Part([*ids], count, streamed=False), keep) or len(ids) >= limit:
                return
            whole *= 2

    async def _streamed(self, request: OutputRequest, part: Part, take: TakeTokens) -> bool:
        """Returns False if tokens were left out that cannot be found."""
        seen = 0
        async with self._client.stream("POST", "/completion", json=body_of(request, part)) as response:
            if not response.is_success:
                raise refusal(response.status_code, (await response.aread()).decode("utf-8", "replace"))
            async for line in response.aiter_lines():
                if not line.startswith("data:"):
                    continue
                event = tokens_of(line.removeprefix("data:").strip())
                tokens = self._with_hidden(event, event.count - seen)
                if tokens is None:
                    return False
                seen = event.count
                take(tokens)
                if event.end is not None:
                    return True
        raise NotReady("llama.cpp closed a stream early.", "Try again.")

    def _with_hidden(self, event: Tokens, count: int) -> Sequence[ServedToken] | None:
        """Returns the `count` tokens of an event, with those that it leaves out; None if they cannot be found."""
        if count == len(event.ids):
            return event.scored or [*map(ServedToken, event.ids)]
        if event.scored or len(event.ids) != 1:
            return None
        found = self._hidden.find(event.text, count - 1, event.ids[0])
        return None if found is None else [*map(ServedToken, [*found, *event.ids])]

    async def _at_once(self, request: OutputRequest, part: Part, take: TakeTokens) -> bool:
        """Returns True if the output has ended."""
        answer = await self._post(body_of(request, part))
        if answer.count != len(answer.ids) or not answer.count:
            raise NotReady(
                f"llama.cpp counts {answer.count} tokens and sent {len(answer.ids)}.", "Try again."
            )
        if request.logprobs is None:
            take([*map(ServedToken, answer.ids)])
        else:
            take(await self._scored(request, part.written, answer))
        return answer.end == "eos"

    async def _scored(
        self, request: OutputRequest, written: Sequence[int], answer: Tokens
    ) -> Sequence[ServedToken]:
        """Returns all tokens with their scores; those that llama.cpp leaves out are scored by a call each."""
        scored, found = iter(answer.scored), list[ServedToken]()
        for place, is_visible in enumerate(self._hidden.visible_ends(answer.ids)):
            token_id = answer.ids[place]
            if is_visible:
                token = next(scored, None)
                if token is None or token.token_id != token_id:
                    raise NotReady("llama.cpp sent log-probabilities of other tokens.", "Try again.")
            else:
                token = await self._score(request, [*written, *answer.ids[:place]], token_id)
            found.append(token)
        return found

    async def _score(self, request: OutputRequest, written: Sequence[int], token_id: int) -> ServedToken:
        for count in (SCORED_TOKENS, self._hidden.rows):
            answer = await self._post(score_body(request, written, self._hidden.visible, count))
            scores = dict(answer.scored[0].top) if answer.scored else {}
            if token_id in scores:
                return ServedToken(token_id, scores[token_id], answer.scored[0].top[: request.logprobs])
        raise NotReady(f"llama.cpp sent no log-probability of the token {token_id}.", "Try again.")

    async def _post(self, body: Mapping[str, Any]) -> Tokens:
        response = await self._client.post("/completion", json=body)
        if not response.is_success:
            raise refusal(response.status_code, response.text)
        return tokens_of(response.text)
