"""Gunicorn's settings, for `gunicorn --config api/gunicorn_conf.py api.wsgi:application`.

Gevent workers: each stream of events costs a greenlet, not a thread, and holds nobody up. The worker patches the
standard library right after its fork and imports the application (with redis-py) only then, so that every socket of
it is a cooperative one. Named as a file, not as `python:api.gunicorn_conf`, these settings do not import the application
before that.
"""

from services.logs import log_config
from services.settings import Settings

_settings = Settings()

bind = (
    f"[{_settings.host}]:{_settings.port}" if ":" in _settings.host else f"{_settings.host}:{_settings.port}"
)
worker_class = "gevent"
workers = 2
worker_connections = 1000

# a worker that has not beaten its heart for this long is stuck, not busy
timeout = 60
# streams of events never end by themselves: they are cut, and their clients go on with Last-Event-ID
graceful_timeout = 3
keepalive = 65

control_socket_disable = True
forwarded_allow_ips = "127.0.0.1,::1"
# the text or the JSON lines of all processes, gunicorn's own lines and those of requests among them
logconfig_dict = log_config(_settings.log_format, through_root=("gunicorn.error", "gunicorn.access"))
accesslog = "-"
access_log_format = '%(h)s "%(r)s" %(s)s %(b)s bytes %(M)s ms id=%({x-request-id}o)s'
errorlog = "-"
