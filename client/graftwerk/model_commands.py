"""`graftwerk models`: list, show and remove models."""

import json
import sys
from typing import Annotated

import typer

from graftwerk.completion import all_names
from graftwerk.option_bundles import expanded
from graftwerk.options import Connection

app = typer.Typer(help="List models; show or remove one.")

Name = Annotated[
    str,
    typer.Argument(metavar="NAME", help="The model's name.", show_default=False, autocompletion=all_names),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print only JSON.")]


@app.callback(invoke_without_command=True)
@expanded
def list_models(context: typer.Context, connection: Connection, as_json: AsJson = False) -> None:
    """List the models on the volume."""
    if context.invoked_subcommand is not None:
        return
    from graftwerk.display import note, open_console
    from graftwerk.lists import ModelsView
    from graftwerk.models import fields_of

    with connection.open() as client:
        models = client.models()
    if as_json:
        typer.echo(json.dumps([fields_of(model) for model in models], indent=2, ensure_ascii=False))
    elif models:
        open_console().print(ModelsView([fields_of(model) for model in models]))
    else:
        note(
            "No models yet. `graftwerk import` makes a model of files on the volume, of the Hub or of this machine."
        )


@app.command()
@expanded
def show(
    name: Name,
    connection: Connection,
    as_json: AsJson = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Print all details, with files and lineage.")
    ] = False,
) -> None:
    """Show a model: kind, sizes, origin, problems."""
    from graftwerk.display import open_console
    from graftwerk.lists import main_facts
    from graftwerk.models import fields_of
    from graftwerk.tables import facts_view

    with connection.open() as client:
        model = fields_of(client.model(name))
    if as_json:
        typer.echo(json.dumps(model, indent=2, ensure_ascii=False))
    else:
        open_console().print(facts_view(model if verbose else main_facts(model)))


@app.command()
@expanded
def rm(
    name: Name,
    connection: Connection,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove without confirmation.")] = False,
) -> None:
    """Remove a model from the volume."""
    from graftwerk.display import note

    if not yes and sys.stdin.isatty():
        typer.confirm(f"Remove {name} permanently?", abort=True)
    with connection.open() as client:
        client.delete_model(name)
    note(f"removed {name}")
