"""`graftwerk models`: list, show and remove models."""

import json
import sys
from typing import Annotated

import typer

from graftwerk.display import facts_view, open_console, rows_view
from graftwerk.models import fields_of
from graftwerk.options import Connection, expanded

app = typer.Typer(help="List models; show or remove one.")

COLUMNS = ("name", "kind", "known_as", "parameters", "dtypes", "vocabulary_size", "size_bytes", "problems")
"""Fields of a model in the list; `models show` has all of them."""

Name = Annotated[str, typer.Argument(metavar="NAME", help="The model's name.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print only JSON.")]


@app.callback(invoke_without_command=True)
@expanded
def list_models(context: typer.Context, connection: Connection, as_json: AsJson = False) -> None:
    """List the models on the volume."""
    if context.invoked_subcommand is not None:
        return
    with connection.open() as client:
        models = client.models()
    if as_json:
        typer.echo(json.dumps([fields_of(model) for model in models], indent=2, ensure_ascii=False))
    elif models:
        open_console().print(
            rows_view([{name: getattr(model, name) for name in COLUMNS} for model in models])
        )
    else:
        open_console(stderr=True).print(
            "No models yet. `graftwerk import` makes a model of files on the volume."
        )


@app.command()
@expanded
def show(name: Name, connection: Connection, as_json: AsJson = False) -> None:
    """Show a model: kind, format, sizes, lineage, problems."""
    with connection.open() as client:
        model = fields_of(client.model(name))
    if as_json:
        typer.echo(json.dumps(model, indent=2, ensure_ascii=False))
    else:
        open_console().print(facts_view(model))


@app.command()
@expanded
def rm(
    name: Name,
    connection: Connection,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove without confirmation.")] = False,
) -> None:
    """Remove a model from the volume."""
    if not yes and sys.stdin.isatty():
        typer.confirm(f"Remove {name} permanently?", abort=True)
    with connection.open() as client:
        client.delete_model(name)
    open_console(stderr=True).print(f"removed {name}", markup=False)
