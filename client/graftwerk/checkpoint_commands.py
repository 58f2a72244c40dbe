"""Commands that make, check or publish a model: `convert`, `merge`, `verify`, `publish-to-hub`, `extend-tokenizer`."""

from typing import Annotated

import typer

from graftwerk.arguments import parse_adapters
from graftwerk.completion import all_names, model_names
from graftwerk.job_run import run_job
from graftwerk.option_bundles import expanded
from graftwerk.options import (
    Adapters,
    Arithmetic,
    Connection,
    ModelName,
    Output,
    Submission,
    Target,
    given,
)


@expanded
def convert(
    source: Annotated[
        str,
        typer.Argument(help="Name of the model to convert.", show_default=False, autocompletion=all_names),
    ],
    target: Annotated[str, typer.Argument(help="Name of the new model.", show_default=False)],
    *,
    connection: Connection,
    submission: Submission,
    output: Output,
    instruct: Annotated[
        bool, typer.Option("--instruct", help="Llama 3: the model is an instruct model.")
    ] = False,
    base: Annotated[
        str | None,
        typer.Option(
            help="Base of an adapter that is written as gguf.", show_default=False, autocompletion=model_names
        ),
    ] = None,
    measure: Annotated[
        str | None,
        typer.Option(
            help="Text on the volume (incoming/…) on which a gguf output is compared with its source.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Convert a checkpoint from one layout to another, or an adapter to GGUF."""
    names = given(
        kind="convert", source=source, target=target, instruct=instruct or None, base=base,
        measure={"text_file": measure} if measure else None,
    )  # fmt: skip
    run_job(connection, submission, names | output.as_request())


@expanded
def merge(
    base: Annotated[
        str,
        typer.Argument(
            help="Name of the base model, in either layout.", show_default=False, autocompletion=model_names
        ),
    ],
    *,
    adapters: Adapters,
    target: Target,
    connection: Connection,
    submission: Submission,
    output: Output,
    arithmetic: Arithmetic,
) -> None:
    """Merge adapters into a base model, in the order given."""
    names = given(kind="merge", base=base, adapters=parse_adapters(adapters), target=target)
    run_job(connection, submission, names | arithmetic.as_request() | output.as_request())


@expanded
def verify(
    model: ModelName,
    *,
    connection: Connection,
    submission: Submission,
    base: Annotated[
        str | None,
        typer.Option(
            help="Also check that the model was made from this base.",
            show_default=False,
            autocompletion=model_names,
        ),
    ] = None,
    adapters: Adapters = [],  # noqa: B006
) -> None:
    """Check a model against its manifest, and against the base and adapters that it was made from."""
    request = given(kind="verify", model=model, base=base, adapters=parse_adapters(adapters))
    run_job(connection, submission, request)


@expanded
def publish_to_hub(
    model: ModelName,
    repository: Annotated[str, typer.Argument(help="Repository of the Hub: org/name.", show_default=False)],
    *,
    connection: Connection,
    submission: Submission,
    public: Annotated[bool, typer.Option("--public", help="Everyone may read the repository.")] = False,
) -> None:
    """Upload a model to a repository of the Hub, a private one by default."""
    names = given(kind="publish-to-hub", model=model, repository=repository)
    run_job(connection, submission, names | ({"private": False} if public else {}))


@expanded
def extend_tokenizer(
    base: Annotated[
        str,
        typer.Argument(
            help="Name of a model with a SentencePiece tokenizer.",
            show_default=False,
            autocompletion=all_names,
        ),
    ],
    addition: Annotated[
        str,
        typer.Argument(
            help="Name of the tokenizer with the pieces to append.",
            show_default=False,
            autocompletion=all_names,
        ),
    ],
    *,
    target: Target,
    connection: Connection,
    submission: Submission,
    pad_token: Annotated[
        str | None, typer.Option(help="A padding token to append, such as [PAD].", show_default=False)
    ] = None,
) -> None:
    """Append to a vocabulary the pieces of another one that it lacks."""
    names = given(kind="extend-tokenizer", base=base, addition=addition, target=target)
    run_job(connection, submission, names | given(pad_token=pad_token))
