"""Entry point of gunicorn: the application with the settings of the environment."""

from contextlib import suppress

from api import create_app
from services.errors import NotReady, QueueFull
from services.jobs.engine_record import EngineRecord
from services.jobs.identity import VolumeIdentity
from services.jobs.queue import connect_api
from services.models.volume import Volume
from services.preflight.isolated import header_processes
from services.settings import Settings

settings = Settings()
redis = connect_api(settings)
Volume(settings.models_dir).identify_by(VolumeIdentity(redis))
with suppress(NotReady, QueueFull):  # the first request announces it then
    EngineRecord(redis, settings.generate_engine).announce()
application = create_app(settings)
header_processes().start()
