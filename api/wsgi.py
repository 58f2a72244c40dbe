"""Entry point of gunicorn: the application with the settings of the environment."""

from api import create_app
from services.settings import Settings

application = create_app(Settings())
