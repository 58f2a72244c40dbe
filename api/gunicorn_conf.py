"""Gunicorn's settings, for `gunicorn --config api/gunicorn_conf.py api.wsgi:application`.

Gevent workers: an event stream costs a greenlet instead of a thread. The worker patches the standard library right
after its fork and only then imports the application (with redis-py), so that all its sockets are cooperative. The settings
are named as a file, because `python:api.gunicorn_conf` would import the application before that.
"""

import resource
import runpy
from pathlib import Path
from typing import Any

from services.isolation.parent_death import die_with_parent
from services.logs import log_config
from services.settings import Settings

_settings = Settings()

bind = (
    f"[{_settings.host}]:{_settings.port}" if ":" in _settings.host else f"{_settings.host}:{_settings.port}"
)
worker_class = runpy.run_path(str(Path(__file__).with_name("gunicorn_worker.py")))["ApiWorker"]
workers = 2
worker_connections = 1000

# seconds without a heartbeat after which a worker counts as stuck
timeout = 60
# event streams do not end by themselves: they are cut, and clients resume with Last-Event-ID
graceful_timeout = 3
keepalive = 65

control_socket_disable = True
forwarded_allow_ips = "127.0.0.1,::1"
# the format of all processes, for gunicorn's own lines and those of requests too
logconfig_dict = log_config(_settings.log_format, through_root=("gunicorn.error", "gunicorn.access"))
accesslog = "-"
access_log_format = '%(h)s "%(r)s" %(s)s %(b)s bytes %(M)s ms id=%({x-request-id}o)s'
errorlog = "-"

OPEN_FILES = 8192
"""Files that a process may have open: each connection is one, and each event stream has another to Redis."""

_soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
if _soft < OPEN_FILES:
    _most = OPEN_FILES if _hard == resource.RLIM_INFINITY else min(OPEN_FILES, _hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(_soft, _most), _hard))


def post_fork(server: Any, worker: Any) -> None:
    """Ends a worker with its master: an orphan would hold the port, and answer next to the new ones."""
    die_with_parent(worker.ppid)
