"""A running vLLM server with one model, and the adapters that it has loaded."""

import asyncio
import logging
import shutil
from functools import partial
from pathlib import Path

from services.engines.engine_server import EngineServer, ServerProgram
from services.engines.output import OutputRequest, ServedAdapter, TakeTokens
from services.engines.vllm import ENVIRONMENT, VllmOptions, server_command
from services.engines.vllm_request import body_of, refusal, tokens_of
from services.errors import InvalidSettings, NotReady

KEPT_ADAPTERS = 64
"""Adapters that a server knows; the least recently used is unloaded for another."""

logger = logging.getLogger("graftwerk.vllm")


class VllmServer(EngineServer):
    """vLLM with one model."""

    def __init__(self, name: str, folder: Path, options: VllmOptions) -> None:
        """Starts the server; `name` is the model's.

        Raises:
            InvalidSettings: the command does not exist.
        """
        if shutil.which(options.program) is None:
            raise InvalidSettings(
                f"VLLM_COMMAND is {options.command!r}, and there is no program {options.program!r}.",
                "Install vLLM (worker/Dockerfile.vllm), or name the command that starts its server.",
            )
        self._adapters: dict[str, asyncio.Task[None]] = {}  # by name, the least recently used first
        self._users: dict[str, int] = {}
        program = ServerProgram(
            engine="vLLM",
            command=partial(server_command, options, folder),
            environment=ENVIRONMENT,
            logger=logger,
            start_seconds=options.start_seconds,
            start_setting="VLLM_START_SECONDS",
            ended_hint="The worker's log has all that it printed.",
        )
        super().__init__(name, program)

    async def _complete(self, request: OutputRequest, take: TakeTokens) -> None:
        adapter = request.adapter
        if adapter is None:
            await self._stream(request, take)
            return
        self._users[adapter.name] = self._users.get(adapter.name, 0) + 1
        try:
            await self._load(adapter)
            await self._stream(request, take)
        finally:
            self._users[adapter.name] -= 1

    async def _stream(self, request: OutputRequest, take: TakeTokens) -> None:
        echoed = 0 if request.prompt_logprobs is None else len(request.prompt_token_ids)
        async with self._client.stream("POST", "/v1/completions", json=body_of(request)) as response:
            if not response.is_success:
                raise refusal(response.status_code, (await response.aread()).decode("utf-8", "replace"))
            async for line in response.aiter_lines():
                data = line.removeprefix("data:").strip()
                if data == "[DONE]":
                    return
                if line.startswith("data:"):
                    prompt, tokens, reason = tokens_of(data, echoed=echoed)
                    echoed -= len(prompt)
                    take(tokens, prompt=prompt)
                    if reason not in (None, "stop", "length"):
                        raise NotReady(f"vLLM ended the output early ({reason}).", "Try again.")
        raise NotReady("vLLM closed a stream early.", "Try again.")

    async def _load(self, adapter: ServedAdapter) -> None:
        """Loads an adapter once."""
        task = self._adapters.pop(adapter.name, None)
        if task is None or (task.done() and task.exception() is not None):
            task = self._loop.create_task(self._load_now(adapter))
        self._adapters[adapter.name] = task
        await asyncio.shield(task)

    async def _load_now(self, adapter: ServedAdapter) -> None:
        idle = [known for known in self._adapters if not self._users.get(known)]
        for known in idle[: max(0, len(self._adapters) + 1 - KEPT_ADAPTERS)]:
            del self._adapters[known]
            self._users.pop(known, None)
            await self._client.post("/v1/unload_lora_adapter", json={"lora_name": known})
        body = {"lora_name": adapter.name, "lora_path": str(adapter.folder)}
        response = await self._client.post("/v1/load_lora_adapter", json=body)
        if not response.is_success:
            error = refusal(400, response.text)
            raise type(error)(
                error.message.replace(
                    "refuses the request", f"does not load the adapter {adapter.folder.name}"
                ),
                "Merge it into its base first, or ask for the merged copy with exact: true.",
            )
