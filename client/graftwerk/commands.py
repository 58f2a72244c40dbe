"""The `graftwerk` command: one function a job kind; groups for jobs and models; `chat`, `serve`, `demo`."""

import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from graftwerk import job_commands, model_commands
from graftwerk.chat import Conversation, converse
from graftwerk.demo import demo
from graftwerk.display import complain, open_console
from graftwerk.models import ClientError, JsonObject, UsageError
from graftwerk.options import (
    Asking,
    Connection,
    Output,
    SamplingOptions,
    Scoring,
    Submission,
    expanded,
    given,
)
from graftwerk.save_results import check_output, save_answers
from graftwerk.serve import serve
from graftwerk.submission import carry_out
from graftwerk.text_input import read_text

TEXT_LIMIT = 1_000_000
"""Most characters of a text in a request."""


class Commands(TyperGroup):
    """The commands; what the service refuses leaves as two lines and an exit code, never as a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the command that was asked for."""
        try:
            return super().invoke(ctx)
        except ClientError as error:
            complain(open_console(stderr=True), error.detail, error.hint)
            raise typer.Exit(error.exit_code) from error


app = typer.Typer(
    cls=Commands,
    name="graftwerk",
    help="Convert, merge and try LLaMA-family models: submits jobs to a Graftwerk service.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(job_commands.app, name="jobs")
app.add_typer(model_commands.app, name="models")
app.command()(serve)
app.command()(demo)

Target = Annotated[str, typer.Option("--target", "-t", help="Name of the model to make.", show_default=False)]
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


@app.command("import")
@expanded
def import_(
    source: Annotated[
        str, typer.Argument(help="A file, folder or zip on the volume: incoming/…", show_default=False)
    ],
    *,
    target: Target,
    connection: Connection,
    submission: Submission,
    is_zip: Annotated[bool, typer.Option("--zip", help="It is a zip archive whatever its name.")] = False,
    sha256: Annotated[
        list[str],
        typer.Option(help="A digest to check. May be repeated.", metavar="PATH=HEX", show_default=False),
    ] = [],  # noqa: B006  (typer reads the default and copies it)
) -> None:
    """Take files of the volume onto the shelf as a model."""
    name = "zip" if is_zip or source.lower().endswith(".zip") else "path"
    request = given(kind="import", source={name: source}, target=target, sha256=parse_digests(sha256))
    carry_out(connection, submission, request)


@app.command()
@expanded
def convert(
    source: Annotated[str, typer.Argument(help="Name of the model to convert.", show_default=False)],
    target: Annotated[str, typer.Argument(help="Name of the model to make.", show_default=False)],
    *,
    connection: Connection,
    submission: Submission,
    output: Output,
    instruct: Annotated[bool, typer.Option("--instruct", help="Llama 3: it is an instruct model.")] = False,
) -> None:
    """Turn a checkpoint of one layout into another."""
    names = given(kind="convert", source=source, target=target, instruct=instruct or None)
    carry_out(connection, submission, names | output.as_request())


@app.command()
@expanded
def merge(
    base: Annotated[
        str, typer.Argument(help="Name of the base model, of either layout.", show_default=False)
    ],
    *,
    adapters: Adapters,
    target: Target,
    connection: Connection,
    submission: Submission,
    output: Output,
    rounding: Annotated[
        Literal["per_adapter", "once"] | None,
        typer.Option(help="per_adapter unless given.", show_default=False),
    ] = None,
    no_verify: Annotated[bool, typer.Option("--no-verify", help="Skip the check of the result.")] = False,
) -> None:
    """Merge adapters into a base model, in the order given."""
    names = given(kind="merge", base=base, adapters=parse_adapters(adapters), target=target)
    options = given(rounding=rounding, verify=False if no_verify else None)
    carry_out(connection, submission, names | options | output.as_request())


@app.command()
@expanded
def verify(
    model: ModelName,
    *,
    connection: Connection,
    submission: Submission,
    base: Annotated[
        str | None, typer.Option(help="Check also that it was made of this base.", show_default=False)
    ] = None,
    adapters: Adapters = [],  # noqa: B006
) -> None:
    """Check a model against its manifest, and against the base and adapters that it was made of."""
    request = given(kind="verify", model=model, base=base, adapters=parse_adapters(adapters))
    carry_out(connection, submission, request)


@app.command("extend-tokenizer")
@expanded
def extend_tokenizer(
    base: Annotated[
        str, typer.Argument(help="Name of a model with a SentencePiece tokenizer.", show_default=False)
    ],
    addition: Annotated[
        str, typer.Argument(help="Name of the tokenizer whose pieces are added.", show_default=False)
    ],
    *,
    target: Target,
    connection: Connection,
    submission: Submission,
    pad_token: Annotated[
        str | None, typer.Option(help="A padding token to append, such as [PAD].", show_default=False)
    ] = None,
) -> None:
    """Append the pieces of one vocabulary that another lacks."""
    names = given(kind="extend-tokenizer", base=base, addition=addition, target=target)
    carry_out(connection, submission, names | given(pad_token=pad_token))


@app.command()
@expanded
def generate(
    model: ModelName,
    *,
    connection: Connection,
    submission: Submission,
    asking: Asking,
    sampling: SamplingOptions,
    adapters: Adapters = [],  # noqa: B006
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="A local file for the answers: a JSON list, or .jsonl.", show_default=False
        ),
    ] = None,
) -> None:
    """Generate text; without --prompt or --prompts-file the prompt is read from stdin."""
    request = given(kind="generate", model=model, adapters=parse_adapters(adapters))
    prompts = prompts_of(asking.prompt, asking.prompts_file)
    request = request | asking.as_request() | sampling.as_request() | prompts
    if output is None:
        carry_out(connection, submission, request)
        return
    if submission.no_wait or submission.dry_run:
        raise UsageError("--output needs a job that is waited for", "Leave out --no-wait and --dry-run.")
    check_output(output, on_the_volume="prompts_file" in prompts)
    carry_out(connection, submission, request, save=partial(save_answers, output=output))


@app.command()
@expanded
def compare(
    variants: Annotated[
        list[str],
        typer.Argument(
            help="Models, as name, base+adapter[@scale]+… or label=base+adapter.", show_default=False
        ),
    ],
    *,
    connection: Connection,
    submission: Submission,
    asking: Asking,
    sampling: SamplingOptions,
) -> None:
    """Ask several models the same, with one seed; shows where their answers part."""
    options = sampling.as_request()
    loading = {name: options.pop(name) for name in ("quantization", "rope_alpha") if name in options}
    options.pop("return_token_ids", None)  # a comparison always has them
    prompts = prompts_of(asking.prompt, asking.prompts_file)
    if "prompts_file" in prompts:
        raise UsageError("a comparison takes no file of the volume", "Give a local file of prompts.")
    names = given(kind="compare", variants=[parse_variant(text) | loading for text in variants])
    carry_out(connection, submission, names | asking.as_request() | options | prompts)


@app.command()
@expanded
def perplexity(
    model: ModelName,
    *,
    connection: Connection,
    submission: Submission,
    scoring: Scoring,
    adapters: Adapters = [],  # noqa: B006
) -> None:
    """Score a text: how well a model, or a base with adapters, expects it."""
    names = given(kind="perplexity", model=model, adapters=parse_adapters(adapters))
    carry_out(connection, submission, names | scoring.as_request() | scored_text(scoring.file))


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
        typer.Option(help="Such as alpaca; the model's own or none unless given.", show_default=False),
    ] = None,
    system: Annotated[str | None, typer.Option(help="System text.", show_default=False)] = None,
) -> None:
    """Talk with a model; what was said before is remembered."""
    request = given(
        model=model, adapters=parse_adapters(adapters), template=template, **sampling.as_request()
    )
    with connection.open() as graftwerk:
        hello = {"kind": "generate", "messages": [{"role": "user", "content": "Hello"}]}
        graftwerk.plan(request | hello)  # what cannot work is refused before anybody types
        converse(graftwerk, Conversation(request, system))


def parse_adapters(texts: list[str]) -> list[str | JsonObject]:
    """Adapters in order, from `["a, b@0.5", "c"]`."""
    choices = [choice.strip() for text in texts for choice in text.split(",")]
    return [_parse_adapter(choice) for choice in choices if choice]


def parse_variant(text: str) -> JsonObject:
    """One of the models of a comparison, from `label=base+adapter@0.5+adapter`."""
    label, _, names = text.rpartition("=")
    model, *adapters = names.split("+")
    return given(label=label or None, model=model, adapters=[_parse_adapter(adapter) for adapter in adapters])


def _parse_adapter(choice: str) -> str | JsonObject:
    name, at, scale = choice.partition("@")
    if not at:
        return name
    try:
        return {"name": name, "scale": float(scale)}
    except ValueError as error:
        raise UsageError(f"{choice!r} has no scale that is a number", f"Write it as {name}@0.5.") from error


def parse_digests(texts: list[str]) -> dict[str, str]:
    """Digests by path, from `["consolidated.00.pth=abc…"]`."""
    digests = {}
    for text in texts:
        path, equals, digest = text.rpartition("=")
        if not equals or not path:
            raise UsageError(f"{text!r} is no digest", "Write it as path=hex.")
        digests[path] = digest
    return digests


def prompts_of(prompts: list[str], prompts_file: str | None) -> JsonObject:
    """The part of a request that says what is asked, from options or stdin."""
    if prompts and prompts_file:
        raise UsageError("both --prompt and --prompts-file were given", "Give one of them.")
    if prompts_file and prompts_file.startswith("incoming/") and not Path(prompts_file).exists():
        return {"prompts_file": prompts_file}
    if prompts_file and prompts_file.endswith((".json", ".jsonl", ".ndjson")):
        raise UsageError(
            f"{prompts_file} is read as JSON by the service only",
            "Put it into incoming/ on the volume and name it incoming/…, or give a text with one prompt a line.",
        )
    if prompts_file:
        lines = read_text(prompts_file).split("\n")
        prompts = [line.removesuffix("\r") for line in lines if line.strip()]
    elif not prompts and sys.stdin.isatty():
        raise UsageError("there is no prompt", "Give --prompt or --prompts-file, or pipe one in.")
    elif not prompts:
        prompts = [text] if (text := read_text("-").removesuffix("\n")) else []
    if not prompts:
        raise UsageError("there is no prompt in what was given", "Give at least one line of text.")
    return {"prompt": prompts[0]} if len(prompts) == 1 else {"prompts": prompts}


def scored_text(file: str) -> JsonObject:
    """The part of a request that says which text is scored: a local file's text, or a file of the volume."""
    if file.startswith("incoming/") and not Path(file).exists():
        return {"text_file": file}
    text = read_text(file)
    if len(text) > TEXT_LIMIT:
        raise UsageError(
            f"{file} has {len(text)} characters, at most {TEXT_LIMIT} are sent with a request",
            "Put it under incoming/ on the model volume, and name it so.",
        )
    return {"text": text}
