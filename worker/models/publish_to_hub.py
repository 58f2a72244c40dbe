"""`publish-to-hub`: the files of a model become a commit of a repository on the Hub."""

from services.kinds.publish_to_hub import PublishToHubRequest, PublishToHubResult
from services.models.hub_publish import Upload
from services.models.imports import list_folder
from worker.lifecycle import JobContext
from worker.models.publish import planned


def run(request: PublishToHubRequest, context: JobContext) -> PublishToHubResult:
    """Uploads all files of the model in one commit. What an earlier execution has uploaded is not sent again."""
    planned(request, context)
    members = list_folder(context.store.path(request.model))
    upload = Upload(
        context.hub, request.repository, members, private=request.private, report=context.execution.report
    )
    done = upload.run(f"{request.model}, uploaded by Graftwerk")
    context.execution.log(f"{request.model} is commit {done.commit} of {done.url}")
    return PublishToHubResult(
        commit=done.commit, repository=request.repository, url=done.url, private=request.private,
        files=len(members), size_bytes=sum(member.size_bytes for member in members),
    )  # fmt: skip
