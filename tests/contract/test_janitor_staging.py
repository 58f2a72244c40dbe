"""Staging folders of other services, and of versions that did not name the service."""

import os
import time

import pytest
from redis import Redis

from services.models.staging import Staging
from services.settings import Settings
from worker.janitor import Janitor


@pytest.fixture
def janitor(redis: Redis, settings: Settings) -> Janitor:
    return Janitor(redis, settings)


def test_staging_folders_of_another_service_are_swept_after_seven_days(
    janitor: Janitor, settings: Settings
) -> None:
    day = 86400
    folders = {name: settings.models_dir / ".staging" / f"job.run.{name}" for name in ("recent", "forgotten")}
    for folder, age in zip(folders.values(), (6 * day, 8 * day), strict=True):
        (folder / "model").mkdir(parents=True)
        for path in (folder / "model", folder):
            os.utime(path, (time.time() - age,) * 2)
    janitor.round()
    assert [name for name, folder in folders.items() if folder.exists()] == ["recent"]


def test_a_staging_folder_without_a_service_stays_while_its_execution_holds_the_lock(
    janitor: Janitor, settings: Settings
) -> None:
    """An old version, whose folders do not say whose they are, may work on the same volume."""
    with Staging(settings.models_dir).folder("job.run", take_over=False) as staged:
        janitor.round()
        assert staged.exists()
    left = settings.models_dir / ".staging" / "job.run"
    left.mkdir()
    janitor.round()
    assert not left.exists()
