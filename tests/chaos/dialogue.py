"""A client of `/v1/responses` next to the load: one question after the other, over all failures."""

import threading
from dataclasses import dataclass, field

import httpx

from tests.chaos.api import Api
from tests.chaos.recipes import QUESTION, Json

BODY: Json = {"input": QUESTION, "temperature": 0, "max_output_tokens": 48}
PAUSE_SECONDS = 1.0
ANSWER_SECONDS = 120.0

EXPLAINED = (429, 502, 503, 504, 507)
"""Statuses that a fault explains; a response is not asked for again, since it may have been made."""


@dataclass(slots=True)
class Dialogue:
    """Asks in a thread until `finish`.

    Attributes:
        model: model that answers.
        answers: text of each response by its id.
        failures: number of questions without a response.
        problems: responses that no fault explains.
    """

    api: Api
    url: str
    model: str = "merged"
    answers: dict[str, str] = field(default_factory=dict)
    failures: int = 0
    problems: list[str] = field(default_factory=list)
    expected: str = ""
    _over: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Asks once without any fault, whose answer is that of all others, and starts the thread."""
        self._ask()
        if not self.answers:
            raise AssertionError(f"without any fault, a response is refused: {self.problems}")
        (self.expected,) = self.answers.values()
        self._thread = threading.Thread(target=self._talk, name="dialogue")
        self._thread.start()

    def finish(self) -> None:
        """Ends the thread and reads all responses again: they are stored as they were answered."""
        assert self._thread is not None
        self._over.set()
        self._thread.join(ANSWER_SECONDS)
        for response_id, text in self.answers.items():
            stored = self.api.send("GET", f"/v1/responses/{response_id}")
            if not stored.is_success or _text(stored.json()) != text or text != self.expected:
                self.problems.append(
                    f"response {response_id} is {text!r} and stored as {stored.text[:300]}, expected {self.expected!r}"
                )

    def _talk(self) -> None:
        while not self._over.wait(PAUSE_SECONDS):
            self._ask()

    def _ask(self) -> None:
        try:
            response = httpx.post(
                f"{self.url}/v1/responses",
                json={**BODY, "model": self.model},
                timeout=ANSWER_SECONDS,
                trust_env=False,
            )
        except httpx.TransportError:
            self.failures += 1
            return
        if response.is_success:
            self.answers[response.json()["id"]] = _text(response.json())
            return
        self.failures += 1
        if response.status_code not in EXPLAINED:
            self.problems.append(f"a response was refused: {response.status_code} {response.text[:300]}")


def _text(response: Json) -> str:
    return "".join(
        part["text"] for item in response["output"] if item["type"] == "message" for part in item["content"]
    )
