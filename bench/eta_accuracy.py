"""Accuracy of the remaining time that a job reports."""

import statistics
import time
from collections.abc import Callable

from services.jobs.execution import INTERVAL_SECONDS, Pace
from services.progress import Progress


class EtaAccuracy:
    """Records the remaining time that a running job would report."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._pace = Pace(clock)
        self._told_at = -1.0
        self._stages: dict[str, list[tuple[float, float, float | None]]] = {}

    def report(self, progress: Progress) -> None:
        """Records the remaining time, as often as a job reports it."""
        now = self._clock()
        told = self._stages.setdefault(progress.stage, [])
        is_last = progress.done == progress.total
        if told and not is_last and now - self._told_at < INTERVAL_SECONDS:
            return
        self._told_at = now
        told.append((now, progress.fraction or 0.0, self._pace.eta_seconds(progress)))

    def accuracy(self) -> dict[str, dict[str, float]]:
        """Returns, for the second half of each stage, the error of the remaining time in percent of its duration."""
        found = {}
        for stage, told in self._stages.items():
            start, end = told[0][0], told[-1][0]
            errors = [
                abs(eta - (end - now)) / (end - start) * 100
                for now, fraction, eta in told
                if eta is not None and 0.5 <= fraction < 1 and end > start
            ]
            if errors:
                found[stage] = {
                    "seconds": round(end - start, 2), "told": len(errors),
                    "median_percent": round(statistics.median(errors), 1), "worst_percent": round(max(errors), 1),
                }  # fmt: skip
        return found
