"""`graftwerk extract` and `graftwerk combine`: adapters that are computed from models and from other adapters."""

from typing import Annotated, Literal

import typer

from graftwerk.arguments import parse_adapters
from graftwerk.completion import adapter_names, model_names
from graftwerk.job_run import run_job
from graftwerk.option_bundles import expanded
from graftwerk.options import Connection, Submission, Target, given


@expanded
def extract(
    base: Annotated[
        str, typer.Argument(help="Name of the base model.", show_default=False, autocompletion=model_names)
    ],
    model: Annotated[
        str,
        typer.Argument(
            help="Name of the model that was trained from it.", show_default=False, autocompletion=model_names
        ),
    ],
    *,
    rank: Annotated[
        int, typer.Option("--rank", "-r", help="Rank of the adapter.", min=1, show_default=False)
    ],
    target: Target,
    connection: Connection,
    submission: Submission,
) -> None:
    """Extract a LoRA adapter from a fine-tuned model and its base."""
    run_job(connection, submission, given(kind="extract", base=base, model=model, rank=rank, target=target))


@expanded
def combine(
    adapters: Annotated[
        list[str],
        typer.Argument(
            help='Names of the adapters; "name@0.5" sets the scale.',
            show_default=False,
            autocompletion=adapter_names,
        ),
    ],
    *,
    target: Target,
    connection: Connection,
    submission: Submission,
    method: Annotated[
        Literal["concatenate", "linear", "ties", "dare"] | None,
        typer.Option(help="Default: concatenate.", show_default=False),
    ] = None,
    density: Annotated[
        float | None,
        typer.Option(help="Share of elements that ties and dare keep. Default: 0.5.", show_default=False),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of dare. Default: 0.", show_default=False)] = None,
    rank: Annotated[
        int | None,
        typer.Option("--rank", "-r", help="Default: the sum of the ranks, exact.", min=1, show_default=False),
    ] = None,
) -> None:
    """Combine several LoRA adapters of one base into one adapter."""
    names = given(kind="combine", adapters=parse_adapters(adapters), target=target)
    run_job(connection, submission, names | given(method=method, density=density, seed=seed, rank=rank))
