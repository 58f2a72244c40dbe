"""The rooms of the house that the views talk to, built once in `create_app`."""

from dataclasses import dataclass

from flask import current_app

from services.jobs.queue import JobQueue
from services.models.store import ModelStore
from services.settings import Settings

EXTENSION = "graftwerk"


@dataclass(frozen=True, slots=True)
class Rooms:
    """One application's settings, queue and store."""

    settings: Settings
    queue: JobQueue
    store: ModelStore


def rooms() -> Rooms:
    """The rooms of the application that answers the current request."""
    found: Rooms = current_app.extensions[EXTENSION]
    return found
