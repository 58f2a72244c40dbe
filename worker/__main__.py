"""`python -m worker convert|merge|generate|janitor`: one process of one kind, set by `GRAFTWERK_*`."""

import argparse
import logging
import logging.config
import os
import secrets
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

from redis import Redis

from services.errors import InvalidSettings
from services.generate_engines import Engine, Engines
from services.jobs.engine_record import EngineRecord
from services.jobs.fork_worker import ForkWorker
from services.jobs.identity import VolumeIdentity
from services.jobs.queue import connect
from services.jobs.rq_workers import TrackedWorker
from services.jobs.webhook_client import sender_of
from services.kinds import KINDS, QueueName
from services.logs import log_config
from services.models.volume import Volume
from services.settings import Settings
from worker.deliveries import DeliveryLoop
from worker.janitor import Janitor, wait_for_redis
from worker.lifecycle import volume_check
from worker.processor import lower_priority, set_threads, set_wait_policy, thread_count, usable_cores

STOP_SECONDS = 5
"""Time that a stopping janitor leaves to messages that are being sent; the others are sent after its next start."""

logger = logging.getLogger("graftwerk.worker")


def configure_logging(log_format: str) -> None:
    """Configures logging to standard error, as text or as JSON lines."""
    logging.config.dictConfig(log_config(log_format))


def preload(queue: str) -> None:
    """Imports the packages that the queue's jobs need before any fork, which saves 6 s per job.

    No tensor operation and no CUDA call may happen here.
    """
    import peft  # noqa: F401, PLC0415
    import transformers  # noqa: F401, PLC0415

    from worker.tasks import handler_of  # noqa: PLC0415

    for kind, row in KINDS.items():
        if row.queue == queue:
            handler_of(kind)


def worker_name(queue: str) -> str:
    """Returns a name that no other worker has had: in a container that starts again, the process id is the same."""
    return f"{queue}-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"


def build(queue: QueueName, name: str, redis: Redis, settings: Settings) -> TrackedWorker:
    """Returns the worker of a queue: the inference worker for `generate`, a forking one for the others."""
    threads = settings.torch_threads or thread_count(queue, usable_cores())
    lower_priority(queue)
    if queue == "generate":
        from worker.inference.vllm_models import cache_bytes_of  # noqa: PLC0415
        from worker.inference.worker import GenerateWorker  # noqa: PLC0415  (imports torch)

        set_threads(threads)
        programs: dict[Engine, str] = {"vllm": settings.vllm_program}
        engines = Engines.installed(
            settings.generate_engine, programs, settings.vllm_adapter_rank, cache_bytes_of(settings)
        )
        EngineRecord(redis, settings.generate_engine).register(engines)
        return GenerateWorker(name=name, redis=redis, settings=settings)
    preload(queue)
    return ForkWorker(
        queue,
        name=name,
        redis=redis,
        settings=settings,
        prepare_process=lambda: set_threads(threads),
        check_volume=volume_check(settings),
    )


@contextmanager
def delivering(settings: Settings, stop: threading.Event) -> Iterator[None]:
    """Sends webhooks in a thread until `stop` is set, if there is a secret to sign them with."""
    sender = sender_of(settings)
    if sender is None:
        yield
        return
    thread = threading.Thread(target=DeliveryLoop(connect(settings), sender).work, args=(stop,), daemon=True)
    thread.start()
    yield
    thread.join(STOP_SECONDS)


def clean_up(redis: Redis, settings: Settings) -> int:
    """Runs the janitor until SIGTERM or SIGINT."""
    stop = threading.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: stop.set())
    logger.info("The janitor has started.")
    with delivering(settings, stop):
        Janitor(redis, settings).work(stop)
    return 0


def rest(engine: str) -> int:
    """Waits for SIGTERM or SIGINT: the workers of another image have the service's engine."""
    signals = (signal.SIGTERM, signal.SIGINT)
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    logger.info("GENERATE_ENGINE is %s: worker-%s generates, and this worker does nothing.", engine, engine)
    signal.sigwait(signals)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs until a signal; returns 1 if the worker ended by itself, so that its supervisor restarts it."""
    parser = argparse.ArgumentParser(prog="python -m worker", description=__doc__)
    parser.add_argument("role", choices=("convert", "merge", "generate", "janitor"))
    parser.add_argument(
        "--unless", metavar="ENGINE", help="do nothing where GENERATE_ENGINE is this: other workers have it"
    )
    options = parser.parse_args(arguments)
    role: QueueName | Literal["janitor"] = options.role
    set_wait_policy()
    settings = Settings()
    configure_logging(settings.log_format)
    if settings.generate_engine == options.unless:
        return rest(settings.generate_engine)
    name = worker_name(role)
    redis = connect(settings, client_name=name)
    wait_for_redis(redis)
    Volume(settings.models_dir).identify_by(VolumeIdentity(redis))
    if role == "janitor":
        return clean_up(redis, settings)
    try:
        worker = build(role, name, redis, settings)
    except InvalidSettings as error:
        logger.error("The worker does not start: %s %s", error.message, error.hint)
        return 1
    worker.work(logging_level="INFO")
    return 0 if worker.asked_to_stop else 1


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    # Not sys.exit: torch's and PEFT's modules take seconds to take down, which a stopping supervisor would wait for.
    os._exit(code)
