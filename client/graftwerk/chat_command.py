"""`graftwerk chat`: the options of a conversation."""

from typing import Annotated

import typer

from graftwerk.arguments import parse_adapters
from graftwerk.completion import template_names
from graftwerk.option_bundles import expanded
from graftwerk.options import Adapters, Connection, ModelName, SamplingOptions, given


@expanded
def chat(
    model: ModelName,
    *,
    connection: Connection,
    sampling: SamplingOptions,
    adapters: Adapters = [],  # noqa: B006
    template: Annotated[
        str | None,
        typer.Option(
            help="For example alpaca. Default: the model's own or none.",
            show_default=False,
            autocompletion=template_names,
        ),
    ] = None,
    system: Annotated[str | None, typer.Option(help="System text.", show_default=False)] = None,
) -> None:
    """Chat with a model, with all previous turns as context."""
    from graftwerk.chat import Conversation, converse

    request = given(
        model=model, adapters=parse_adapters(adapters), template=template, **sampling.as_request()
    )
    with connection.open() as client:
        first = {"kind": "generate", "messages": [{"role": "user", "content": "Hello"}]}
        client.plan(request | first)  # an impossible request is refused before anything is typed
        converse(client, Conversation(request, system))
