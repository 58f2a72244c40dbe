"""Clock of a janitor, so that tests need not wait until a worker counts as lost."""

from worker.janitor import Janitor


class Clock:
    """Clock that only the test moves."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def watch(janitor: Janitor, clock: Clock, seconds: int = 31) -> None:
    """Lets the janitor look for lost workers each second: by default as long as a connected one may be silent."""
    for _ in range(seconds):
        janitor.recover()
        clock.seconds += 1
    janitor.recover()
