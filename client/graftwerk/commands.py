"""The `graftwerk` command: one command per kind of job, groups for jobs and models, and those of this machine.

Modules of commands import httpx, pydantic and rich where they use them: `--version`, `--help` and the completion of shells come first.
"""

from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from graftwerk import (
    adapter_commands,
    chain_commands,
    chat_command,
    checkpoint_commands,
    inference_commands,
    job_commands,
    model_commands,
    service_commands,
    transfer_commands,
)
from graftwerk.errors import ClientError

EXIT_INTERRUPTED = 130


class Commands(TyperGroup):
    """The commands. A refusal by the service becomes two lines and an exit code, never a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Runs a command."""
        try:
            return super().invoke(ctx)
        except ClientError as error:
            from graftwerk.display import complain, open_console

            complain(open_console(stderr=True), error.detail, error.hint)
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt:
            raise typer.Exit(EXIT_INTERRUPTED) from None


app = typer.Typer(
    cls=Commands,
    name="graftwerk",
    help="Convert, merge and try models: submits jobs to a Graftwerk service.",
    epilog="`graftwerk help COMMAND` shows the options of a command, `graftwerk doctor` checks the service.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"graftwerk {version('graftwerk')}")
        raise typer.Exit


@app.callback()
def root(
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Convert, merge and try models: submits jobs to a Graftwerk service."""


app.command("import")(transfer_commands.import_)
app.command()(checkpoint_commands.convert)
app.command()(checkpoint_commands.merge)
app.command()(checkpoint_commands.verify)
app.command()(inference_commands.generate)
app.command()(chat_command.chat)
app.command()(inference_commands.compare)
app.command()(inference_commands.perplexity)
app.command()(inference_commands.embed)
app.command()(inference_commands.tokenize)
app.command()(adapter_commands.extract)
app.command()(adapter_commands.combine)
app.command("extend-tokenizer")(checkpoint_commands.extend_tokenizer)
app.command("publish-to-hub")(checkpoint_commands.publish_to_hub)
app.command()(chain_commands.chain)
app.command()(transfer_commands.push)
app.command()(transfer_commands.pull)
app.add_typer(job_commands.app, name="jobs")
app.add_typer(model_commands.app, name="models")
app.command()(service_commands.serve)
app.command()(service_commands.demo)
app.command()(service_commands.doctor)


@app.command("help")
def help_(
    context: typer.Context,
    command: Annotated[
        list[str] | None, typer.Argument(help="Name of a command, such as merge or jobs watch.")
    ] = None,
) -> None:
    """Show the help of a command."""
    root_context = context.find_root()
    root_context.command.main(
        [*(command or []), "--help"], prog_name=root_context.info_name, standalone_mode=False
    )
