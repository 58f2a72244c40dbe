"""Commands that run a model: `generate`, `compare`, `embed`, `tokenize`, `perplexity`."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from graftwerk.arguments import (
    form_fields,
    parse_adapters,
    parse_token_ids,
    parse_variant,
    prompt_fields,
    read_lines,
    text_fields,
    tool_fields,
)
from graftwerk.completion import model_names
from graftwerk.errors import UsageError
from graftwerk.job_run import run_job
from graftwerk.option_bundles import expanded
from graftwerk.options import (
    Adapters,
    Connection,
    ModelName,
    Prompts,
    SamplingOptions,
    ScoredText,
    Submission,
    Tokenization,
    ToolOptions,
    given,
)


@expanded
def generate(
    model: ModelName,
    *,
    connection: Connection,
    submission: Submission,
    prompts: Prompts,
    tools: ToolOptions,
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
    fields |= form_fields(prompts.response_format, prompts.guided_regex)
    fields |= tool_fields(tools.tools, tools.tool_choice, tools.chat_template_kwargs)
    request = request | prompts.as_request() | sampling.as_request() | fields
    if output is None:
        run_job(connection, submission, request)
        return
    if submission.no_wait or submission.dry_run:
        raise UsageError("--output needs the ended job.", "Leave out --no-wait and --dry-run.")
    from graftwerk.save_results import check_output, save_outputs

    check_output(output, on_the_volume="prompts_file" in fields)
    run_job(connection, submission, request, save=partial(save_outputs, output=output))


@expanded
def compare(
    variants: Annotated[
        list[str],
        typer.Argument(
            help="Models: name, base+adapter[@scale]+… or label=base+adapter.",
            show_default=False,
            autocompletion=model_names,
        ),
    ],
    *,
    connection: Connection,
    submission: Submission,
    prompts: Prompts,
    tools: ToolOptions,
    sampling: SamplingOptions,
) -> None:
    """Give several models the same prompts and seed, and show where their outputs differ."""
    options = sampling.as_request()
    loading = {name: options.pop(name) for name in ("quantization", "rope_alpha") if name in options}
    options.pop("return_token_ids", None)  # a comparison always returns them
    fields = prompt_fields(prompts.prompt, prompts.prompts_file)
    if "prompts_file" in fields:
        raise UsageError("A comparison reads no prompts file on the volume.", "Give a local file of prompts.")
    fields |= form_fields(prompts.response_format, prompts.guided_regex)
    fields |= tool_fields(tools.tools, tools.tool_choice, tools.chat_template_kwargs)
    names = given(kind="compare", variants=[parse_variant(text) | loading for text in variants])
    run_job(connection, submission, names | prompts.as_request() | options | fields)


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


@expanded
def tokenize(
    model: ModelName,
    texts: Annotated[
        list[str] | None,
        typer.Argument(help="Texts. Without any, each line of stdin is one.", show_default=False),
    ] = None,
    *,
    connection: Connection,
    submission: Submission,
    options: Tokenization,
    adapters: Adapters = [],  # noqa: B006
) -> None:
    """Turn texts into token ids, printed as one JSON list per line; with --token-ids, ids into texts."""
    names = given(kind="tokenize", model=model, adapters=parse_adapters(adapters)) | options.as_request()
    if options.token_ids and texts:
        raise UsageError("Both texts and --token-ids were given.", "Give one of them.")
    if options.token_ids:
        run_job(connection, submission, names | {"token_ids": parse_token_ids(options.token_ids)})
    else:
        run_job(connection, submission, names | {"texts": texts or read_lines("-")})


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
