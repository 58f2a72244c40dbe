"""Entry point of gunicorn: the application with the settings of the environment."""

from api import create_app
from services.jobs.identity import VolumeIdentity
from services.jobs.queue import connect_api
from services.models.volume import Volume
from services.preflight.isolated import header_processes
from services.settings import Settings

settings = Settings()
Volume(settings.models_dir).identify_by(VolumeIdentity(connect_api(settings)))
application = create_app(settings)
header_processes().start()
