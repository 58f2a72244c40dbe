"""The `graftwerk` command: one command per kind of job, groups for jobs and models, `chat`, `serve` and `demo`."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from graftwerk import adapter_commands, job_commands, model_commands, transfer_commands
from graftwerk.arguments import (
    parse_adapters,
    parse_variant,
    prompt_fields,
    read_lines,
    text_fields,
)
from graftwerk.chat import Conversation, converse
from graftwerk.demo import demo
from graftwerk.display import complain, open_console
from graftwerk.errors import ClientError, UsageError
from graftwerk.options import (
    Arithmetic,
    Connection,
    Output,
    Prompts,
    SamplingOptions,
    ScoredText,
    Submission,
    Target,
    expanded,
    given,
)
from graftwerk.save_results import check_output, save_outputs
from graftwerk.serve import serve
from graftwerk.submission import run_job


class Commands(TyperGroup):
    """The commands. A refusal by the service becomes two lines and an exit code, never a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Runs a command."""
        try:
            return super().invoke(ctx)
        except ClientError as error:
            complain(open_console(stderr=True), error.detail, error.hint)
            raise typer.Exit(error.exit_code) from error


app = typer.Typer(
    cls=Commands,
    name="graftwerk",
    help="Convert, merge and try models: submits jobs to a Graftwerk service.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(job_commands.app, name="jobs")
app.add_typer(model_commands.app, name="models")
app.command("import")(transfer_commands.import_)
app.command()(adapter_commands.extract)
app.command()(adapter_commands.combine)
app.command()(transfer_commands.push)
app.command()(transfer_commands.pull)
app.command()(serve)
app.command()(demo)

Adapters = Annotated[
    list[str],
    typer.Option(
        "--adapters",
        "-a",
        help='Names in order, separated by commas or repeated; "name@0.5" sets the scale.',
        show_default=False,
    ),
]
ModelName = Annotated[str, typer.Argument(help="Name of the model.", show_default=False)]


@app.command()
@expanded
def convert(
    source: Annotated[str, typer.Argument(help="Name of the model to convert.", show_default=False)],
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
        typer.Option(help="Base of an adapter that is written as gguf.", show_default=False),
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


@app.command()
@expanded
def merge(
    base: Annotated[
        str, typer.Argument(help="Name of the base model, in either layout.", show_default=False)
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


@app.command()
@expanded
def verify(
    model: ModelName,
    *,
    connection: Connection,
    submission: Submission,
    base: Annotated[
        str | None,
        typer.Option(help="Also check that the model was made from this base.", show_default=False),
    ] = None,
    adapters: Adapters = [],  # noqa: B006
) -> None:
    """Check a model against its manifest, and against the base and adapters that it was made from."""
    request = given(kind="verify", model=model, base=base, adapters=parse_adapters(adapters))
    run_job(connection, submission, request)


@app.command("publish-to-hub")
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


@app.command("extend-tokenizer")
@expanded
def extend_tokenizer(
    base: Annotated[
        str, typer.Argument(help="Name of a model with a SentencePiece tokenizer.", show_default=False)
    ],
    addition: Annotated[
        str, typer.Argument(help="Name of the tokenizer with the pieces to append.", show_default=False)
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


@app.command()
@expanded
def generate(
    model: ModelName,
    *,
    connection: Connection,
    submission: Submission,
    prompts: Prompts,
    sampling: SamplingOptions,
    adapters: Adapters = [],  # noqa: B006
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Local file for the outputs: a JSON list, or .jsonl.", show_default=False
        ),
    ] = None,
) -> None:
    """Generate text. Without --prompt or --prompts-file, the prompt is read from stdin."""
    request = given(kind="generate", model=model, adapters=parse_adapters(adapters))
    fields = prompt_fields(prompts.prompt, prompts.prompts_file)
    request = request | prompts.as_request() | sampling.as_request() | fields
    if output is None:
        run_job(connection, submission, request)
        return
    if submission.no_wait or submission.dry_run:
        raise UsageError("--output needs the ended job.", "Leave out --no-wait and --dry-run.")
    check_output(output, on_the_volume="prompts_file" in fields)
    run_job(connection, submission, request, save=partial(save_outputs, output=output))


@app.command()
@expanded
def compare(
    variants: Annotated[
        list[str],
        typer.Argument(
            help="Models: name, base+adapter[@scale]+… or label=base+adapter.", show_default=False
        ),
    ],
    *,
    connection: Connection,
    submission: Submission,
    prompts: Prompts,
    sampling: SamplingOptions,
) -> None:
    """Give several models the same prompts and seed, and show where their outputs differ."""
    options = sampling.as_request()
    loading = {name: options.pop(name) for name in ("quantization", "rope_alpha") if name in options}
    options.pop("return_token_ids", None)  # a comparison always returns them
    fields = prompt_fields(prompts.prompt, prompts.prompts_file)
    if "prompts_file" in fields:
        raise UsageError("A comparison reads no prompts file on the volume.", "Give a local file of prompts.")
    names = given(kind="compare", variants=[parse_variant(text) | loading for text in variants])
    run_job(connection, submission, names | prompts.as_request() | options | fields)


@app.command()
@expanded
def embed(
    model: ModelName,
    texts: Annotated[
        list[str] | None,
        typer.Argument(help="Texts. Without any, each line of stdin is one.", show_default=False),
    ] = None,
    *,
    connection: Connection,
    submission: Submission,
    adapters: Adapters = [],  # noqa: B006
) -> None:
    """Turn texts into vectors, printed as one JSON list per line."""
    names = given(kind="embed", model=model, adapters=parse_adapters(adapters))
    run_job(connection, submission, names | {"inputs": texts or read_lines("-")})


@app.command()
@expanded
def perplexity(
    model: ModelName,
    *,
    connection: Connection,
    submission: Submission,
    scored: ScoredText,
    adapters: Adapters = [],  # noqa: B006
) -> None:
    """Score a text: the perplexity of a model, or of a base with adapters."""
    names = given(kind="perplexity", model=model, adapters=parse_adapters(adapters))
    run_job(connection, submission, names | scored.as_request() | text_fields(scored.file))


@app.command()
@expanded
def chat(
    model: ModelName,
    *,
    connection: Connection,
    sampling: SamplingOptions,
    adapters: Adapters = [],  # noqa: B006
    template: Annotated[
        str | None,
        typer.Option(help="For example alpaca. Default: the model's own or none.", show_default=False),
    ] = None,
    system: Annotated[str | None, typer.Option(help="System text.", show_default=False)] = None,
) -> None:
    """Chat with a model, with all previous turns as context."""
    request = given(
        model=model, adapters=parse_adapters(adapters), template=template, **sampling.as_request()
    )
    with connection.open() as client:
        first = {"kind": "generate", "messages": [{"role": "user", "content": "Hello"}]}
        client.plan(request | first)  # an impossible request is refused before anything is typed
        converse(client, Conversation(request, system))
