"""Actuators of the chaos driver against real processes: proxy, clock, renames."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError, TimeoutError
from redis.retry import Retry

from tests.chaos.clock import Clock
from tests.chaos.proxy import Link, Proxy
from tests.chaos.renames import Renames
from tests.redis_server import Server, until

PRINT_TIME = "import time; print(time.time(), time.monotonic()); time.sleep(0.01)"


@pytest.fixture
def proxy(redis_server: Server) -> Iterator[Proxy]:
    """A proxy with one link to the server."""
    opened = Proxy(["merge"], redis_server.port)
    yield opened
    opened.close()


def connection(proxy: Proxy) -> Redis:
    return Redis(port=proxy.links["merge"].port, retry=Retry(NoBackoff(), 0), socket_timeout=0.5)


def test_a_cut_breaks_connections_until_it_is_restored(proxy: Proxy) -> None:
    with connection(proxy) as redis:
        assert redis.ping()
        proxy.apply("merge", Link.cut)
        until(lambda: not answers(redis))
        proxy.apply("merge", Link.restore)
        until(lambda: answers(redis))


def answers(redis: Redis) -> bool:
    try:
        return bool(redis.ping())
    except (ConnectionError, TimeoutError):
        return False


def test_swallowed_packets_arrive_after_the_fault(proxy: Proxy) -> None:
    with connection(proxy) as redis:
        redis.delete("swallowed")
        proxy.apply("merge", Link.hold)
        with pytest.raises(TimeoutError):
            redis.incr("swallowed")
        proxy.apply("merge", Link.restore)
        until(lambda: answers(redis) and redis.get("swallowed") == b"1")


def test_a_delay_holds_each_way(proxy: Proxy) -> None:
    with connection(proxy) as redis:
        assert redis.ping()
        proxy.apply("merge", lambda link: setattr(link, "delay_seconds", 0.1))
        started = time.monotonic()
        assert redis.ping()
        assert time.monotonic() - started >= 0.2


def test_a_step_moves_the_time_of_day_and_not_the_monotonic_clock(tmp_path: Path) -> None:
    clock = Clock(tmp_path)
    assert clock.missing is None
    clock.step(3600)
    before = time.time(), time.monotonic()
    printed = subprocess.run(
        [sys.executable, "-c", PRINT_TIME], env=clock.environment, capture_output=True, text=True, check=True
    )
    stepped = [float(number) for number in printed.stdout.split()]
    assert 3600 <= stepped[0] - before[0] < 3660
    assert 0 <= stepped[1] - before[1] < 60


def test_renames_into_a_folder_are_counted_and_other_files_are_not(tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    renames = Renames(volume)
    (volume / "written").mkdir()
    for name in ("made", "other", "made"):
        (tmp_path / "staged").write_text("x")
        (tmp_path / "staged").rename(volume / name)
    renames.close()
    assert renames.counts == {"made": 2, "other": 1}
