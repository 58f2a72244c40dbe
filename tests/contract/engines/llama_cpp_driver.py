"""Drivers of the llama.cpp engine and of the reference engine on the same prompts."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from services.adapters.gguf_adapter_file import check_gguf_adapter
from services.architectures.checkpoint_reader import read_checkpoint
from services.engines.engine_server import EngineServer
from services.engines.llama_cpp import LlamaCppOptions
from services.engines.llama_cpp_server import LlamaCppServer
from services.generate import (
    Completion,
    Event,
    GenerationRequest,
    OutputFailed,
    OutputFinished,
    TokenGenerated,
    read_served_gguf,
)
from worker.inference.llama_cpp_engine import LlamaCppEngine

PATIENCE_SECONDS = 120.0


@dataclass
class Driver:
    """An engine with a process of its own, and the event that it sets."""

    engine: LlamaCppEngine
    wakeup: threading.Event

    @property
    def server(self) -> EngineServer:
        return self.engine.server

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not self.engine.free_slots:
            assert time.monotonic() < deadline
            self.engine.step()
            time.sleep(0.02)

    def events(self) -> list[Event]:
        """Returns the next events, at least one."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            if events := self.engine.step():
                return events
            self.wakeup.wait(1)
            self.wakeup.clear()
        raise AssertionError("no event came")

    def run(self, *requests: GenerationRequest) -> list[list[Completion]]:
        """Returns the outputs of each request."""
        found: dict[str, list[Completion]] = {self.engine.submit(request): [] for request in requests}
        texts: dict[tuple[str, int], str] = {}
        while sum(map(len, found.values())) < sum(request.sampling.n for request in requests):
            for event in self.events():
                assert not isinstance(event, OutputFailed), event.error
                if isinstance(event, TokenGenerated):
                    place = event.request_id, event.index
                    texts[place] = texts.get(place, "") + event.text
                else:
                    found[event.request_id].append(event.output)
                    assert texts.get((event.request_id, event.index), "") == event.output.text
        return [sorted(outputs, key=lambda output: output.index) for outputs in found.values()]

    def failure(self, request: GenerationRequest) -> OutputFailed:
        self.engine.submit(request)
        while True:
            for event in self.events():
                if isinstance(event, OutputFailed):
                    return event
                assert not isinstance(event, OutputFinished)


def start(
    folder: Path,
    *,
    context: int = 256,
    slots: int = 4,
    adapters: Sequence[tuple[Path, float]] = (),
    start_seconds: float = PATIENCE_SECONDS,
) -> Driver:
    """Starts a process with the GGUF model of a folder, and adapters by their folders."""
    checkpoint = read_checkpoint(folder)
    files = tuple((check_gguf_adapter(path, folder).path, scale) for path, scale in adapters)
    options = LlamaCppOptions(
        model=checkpoint.weight_files[0], adapters=files, slots=slots, context=context, threads=2,
        memory_bytes=2**30, start_seconds=start_seconds,
    )  # fmt: skip
    model = read_served_gguf(checkpoint, context=context, size_bytes=1, device_name="cpu")
    wakeup = threading.Event()
    server = LlamaCppServer(folder.name, options, model.tokenizer.token_bytes())
    server.when_started(wakeup.set)
    engine = LlamaCppEngine(loaded=model, server=server, slots=slots, notify=wakeup.set, on_close=server.stop)
    return Driver(engine, wakeup)
