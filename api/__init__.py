"""The HTTP API: requests in, JSON out. It never imports a tensor library."""

from flask_openapi3.models.info import Info
from flask_openapi3.openapi import OpenAPI
from pydantic import BaseModel

from api import (
    anthropic,
    auth,
    deliveries,
    errors,
    headers,
    health,
    hub,
    incoming,
    jobs,
    metrics,
    models,
    openai,
    openapi,
    origins,
    pages,
    prompt_templates,
    responses,
    signin,
    uploads,
)
from api.anthropic.body import CountTokensBody, MessagesBody
from api.openai import responses_api, tokenizer
from api.openai.responses_api.body import ResponsesBody
from api.openai.schemas import ChatBody, CompletionBody, EmbeddingBody
from api.state import EXTENSION, AppState
from services.backend import Backend
from services.generate_engines import GgufLimits
from services.jobs.engine_record import EngineRecord
from services.jobs.model_records import ModelRecords
from services.jobs.queue import JobQueue, connect, connect_api
from services.jobs.webhook_client import sender_of
from services.models.hub import Hub
from services.models.incoming import IncomingList
from services.models.store import ModelStore
from services.preflight import Plan
from services.preflight.isolated import IsolatedPlanner, header_processes
from services.preflight.model_reader import ModelReader
from services.settings import Settings

API_VERSION = "1"


def create_app(
    settings: Settings, *, queue: JobQueue | None = None, store: ModelStore | None = None
) -> OpenAPI:
    """Returns the application: access control, error handlers, routes and the OpenAPI document.

    Args:
        settings: The settings of this process.
        queue: The job queue; by default in the Redis of the settings.
        store: The model store; by default the volume of the settings.

    Raises:
        InvalidSettings: the API would be open to other machines without a key, or its keys or another secret cannot be read.
    """
    sender_of(settings)  # only the janitor sends webhooks, but a wrong secret is found here too
    app = OpenAPI(
        __name__,
        info=Info(title="Graftwerk", version=API_VERSION, description=openapi.DESCRIPTION),
        security_schemes=openapi.SECURITY_SCHEMES,
        doc_ui=False,
        validation_error_model=errors.Problem,
        validation_error_callback=errors.on_validation_error,
    )
    app.config["MAX_CONTENT_LENGTH"] = settings.body_limit_bytes
    app.url_map.merge_slashes = False  # a path with `//` is an unknown file, not a redirect
    app.json.sort_keys = False  # type: ignore[attr-defined]
    queue = queue or JobQueue(connect_api(settings), settings, streams=connect(settings))
    store = store or ModelStore(settings.models_dir)
    limits = GgufLimits(settings.generate_slots, settings.llama_cpp_context)
    engines = EngineRecord(queue.redis, settings.generate_engine, limits)
    app.extensions[EXTENSION] = AppState(
        settings=settings,
        queue=queue,
        store=store,
        models=ModelReader(store, ModelRecords(queue.redis), header_processes(), engines.engines),
        planner=IsolatedPlanner(header_processes()),
        backend=Backend.of(settings, queue.identity),
        hub=Hub.of(settings),
        engines=engines,
    )

    app.before_request(origins.check_host)
    auth.register(app, settings, queue.redis)
    headers.register(app)
    errors.register(app)
    for noun in (
        jobs,
        deliveries,
        models,
        incoming,
        uploads,
        hub,
        prompt_templates,
        openai,
        responses_api,
        anthropic,
        tokenizer,
        signin,
        metrics,
        health,
    ):
        app.register_api(noun.api)
    app.register_blueprint(signin.page)
    pages.register(app)
    app.wsgi_app = openai.FixedModel(app.wsgi_app)  # type: ignore[method-assign]

    bodies: list[type[BaseModel]] = [responses.JobBody, ChatBody, CompletionBody, EmbeddingBody]
    bodies += [ResponsesBody, MessagesBody, CountTokensBody, tokenizer.TokenizeBody, tokenizer.DetokenizeBody]
    returned: list[type[BaseModel]] = [responses.JobResponse, responses.JobPage, Plan, responses.ModelList]
    returned += [
        hub.HubModelList,
        hub.HubRepository,
        uploads.UploadState,
        deliveries.DeliveryList,
        models.Dependents,
        IncomingList,
        prompt_templates.TemplateList,
        signin.SessionState,
        errors.Problem,
        metrics.System,
        health.Health,
        health.Readiness,
    ]
    openapi.complete(app, bodies, returned)
    return app
