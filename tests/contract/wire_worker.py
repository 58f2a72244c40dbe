"""`python -m tests.contract.wire_worker`: forking worker of the convert queue without heavy imports."""

import os
import sys

from services.jobs.fork_worker import ForkWorker
from services.jobs.identity import VolumeIdentity
from services.jobs.queue import connect
from services.models.volume import Volume
from services.settings import Settings
from worker.__main__ import configure_logging
from worker.lifecycle import volume_check


def main() -> int:
    """Runs until a signal."""
    configure_logging("text")
    settings = Settings()
    name = f"convert-test-{os.getpid()}"
    redis = connect(settings, client_name=name)
    Volume(settings.models_dir).identify_by(VolumeIdentity(redis))
    worker = ForkWorker(
        "convert",
        name=name,
        redis=redis,
        settings=settings,
        prepare_process=lambda: None,
        check_volume=volume_check(settings),
    )
    worker.work()
    return 0 if worker.asked_to_stop else 1


if __name__ == "__main__":
    sys.exit(main())
