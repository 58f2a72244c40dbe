"""The entry point of gunicorn: settings from the environment, and the application."""

from api import create_app
from services.settings import Settings

application = create_app(Settings())
