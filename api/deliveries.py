"""Deliveries of the webhooks of jobs: list, and send again."""

from flask import Response
from flask_openapi3.blueprint import APIBlueprint
from flask_openapi3.models.tag import Tag
from pydantic import BaseModel, Field

from api.errors import problems
from api.jobs import JobPath, job_id_of
from api.openapi import SECURITY
from api.responses import json_response
from api.state import state
from services.jobs.deliveries import Delivery

api = APIBlueprint(
    "deliveries",
    __name__,
    url_prefix="/api",
    abp_tags=[Tag(name="jobs")],
    abp_security=SECURITY,
    abp_responses=problems(401, 403, 500),
)


class DeliveryPath(JobPath):
    """Path parameters of one delivery."""

    delivery_id: str = Field(max_length=64)


class DeliveryList(BaseModel):
    """The deliveries of a job, oldest first."""

    deliveries: list[Delivery]


@api.get("/jobs/<job_id>/deliveries", responses={200: DeliveryList, **problems(404, 503)})
def deliveries(path: JobPath) -> Response:
    """List the deliveries of a job's webhook, with their attempts."""
    return json_response(DeliveryList(deliveries=list(state().queue.deliveries(job_id_of(path)))))


@api.post(
    "/jobs/<job_id>/deliveries/<delivery_id>/redeliver",
    responses={202: Delivery, **problems(404, 409, 422, 503)},
)
def redeliver(path: DeliveryPath) -> Response:
    """Send a delivery that was made or has failed again, under the same `webhook-id`."""
    return json_response(state().queue.redeliver(job_id_of(path), path.delivery_id), 202)
