"""Options that several commands have, written once: a dataclass of them is one parameter of a command."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from typing import Annotated, Any, Literal, TypeVar, cast, get_type_hints

import typer

from graftwerk.http import DEFAULT_URL, Graftwerk

Command = TypeVar("Command", bound=Callable[..., None])


def expanded(command: Command) -> Command:
    """The command with each dataclass parameter replaced, for typer's eyes, by one parameter a field."""
    hints = get_type_hints(command, include_extras=True)
    bundles = {name: hint for name, hint in hints.items() if is_dataclass(hint)}

    @functools.wraps(command)
    def run(**values: Any) -> None:
        gathered = {
            name: bundle(**{item.name: values.pop(item.name) for item in fields(bundle)})
            for name, bundle in cast(dict[str, type[Any]], bundles).items()
        }
        command(**values, **gathered)

    parameters = [
        parameter
        for name, given in inspect.signature(command).parameters.items()
        for parameter in (_field_parameters(bundles[name]) if name in bundles else [given])
    ]
    signature = inspect.Signature(sorted(parameters, key=lambda parameter: parameter.kind))
    run.__signature__ = signature  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return cast(Command, run)


def _field_parameters(bundle: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(bundle, include_extras=True)
    return [
        inspect.Parameter(
            item.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=_default_of(item),
            annotation=hints[item.name],
        )
        for item in fields(bundle)
    ]


def _default_of(item: Field[Any]) -> Any:
    if item.default_factory is not MISSING:
        return item.default_factory()
    return inspect.Parameter.empty if item.default is MISSING else item.default


@dataclass(frozen=True)
class Connection:
    """Which service is spoken to, and as whom."""

    url: Annotated[
        str, typer.Option(envvar="GRAFTWERK_URL", help="Address of the service.", rich_help_panel="Service")
    ] = DEFAULT_URL
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="GRAFTWERK_API_KEY", help="Bearer key.", rich_help_panel="Service", show_default=False
        ),
    ] = None

    def open(self) -> Graftwerk:
        """A client for this service."""
        return Graftwerk(self.url, self.api_key)


@dataclass(frozen=True)
class Submission:
    """How a job is submitted and what is shown of it."""

    after: Annotated[
        list[str],
        typer.Option(
            help="Run only when this job has succeeded. May be repeated.",
            metavar="ID",
            rich_help_panel="Job",
            show_default=False,
        ),
    ] = field(default_factory=list)
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Submit and return at once.", rich_help_panel="Job")
    ] = False
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show what would be done, and do nothing.", rich_help_panel="Job"),
    ] = False
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="Print the job (or the plan) as JSON, and only that.", rich_help_panel="Job"
        ),
    ] = False


def _option(panel: str, help_text: str, *names: str) -> Any:
    return typer.Option(*names, help=help_text, rich_help_panel=panel, show_default=False)


_output_option = functools.partial(_option, "Output")
_prompt_option = functools.partial(_option, "Prompt")
_sampling_option = functools.partial(_option, "Sampling")
_scoring_option = functools.partial(_option, "Text")


@dataclass(frozen=True)
class Output:
    """How a model is written."""

    output_format: Annotated[
        Literal["huggingface", "meta", "gguf"] | None, _output_option("huggingface unless given.")
    ] = None
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16", "q8_0"] | None,
        _output_option("Each tensor's own unless given; q8_0 is of gguf."),
    ] = None
    max_shard_size: Annotated[str | None, _output_option("Such as 5GB.")] = None
    ranks: Annotated[int | None, _output_option("Rank files of a meta output.")] = None
    force: Annotated[
        bool, _output_option("Make it anew even where the same request has made it before.", "--force")
    ] = False

    def as_request(self) -> dict[str, Any]:
        """The fields of a request that were given."""
        return given(**{**vars(self), "force": self.force or None})


@dataclass(frozen=True)
class Asking:
    """What is asked, and how it is written down for the model."""

    prompt: Annotated[list[str], _prompt_option("A prompt. May be repeated.", "--prompt", "-p")] = field(
        default_factory=list
    )
    prompts_file: Annotated[
        str | None, _prompt_option("Prompts, one a line; incoming/… is a file on the volume.")
    ] = None
    template: Annotated[
        str | None, _prompt_option("Such as alpaca; the model's own or none unless given.")
    ] = None
    system: Annotated[str | None, _prompt_option("System text.")] = None
    input: Annotated[str | None, _prompt_option("Input of an instruction template.")] = None

    def as_request(self) -> dict[str, Any]:
        """The fields of a request that were given, save the prompts."""
        return given(template=self.template, system=self.system, input=self.input)


@dataclass(frozen=True)
class SamplingOptions:
    """How the next token is chosen; what is not given is left to the service."""

    max_new_tokens: Annotated[int | None, _sampling_option("The answer ends after this many tokens.")] = None
    temperature: Annotated[float | None, _sampling_option("Below 1 is bolder; 0 is greedy.")] = None
    top_k: Annotated[int | None, _sampling_option("Draw from the k likeliest tokens; 0 is all.")] = None
    top_p: Annotated[float | None, _sampling_option("Draw from this share of probability.")] = None
    min_p: Annotated[float | None, _sampling_option("Drop tokens below this share of the likeliest.")] = None
    repetition_penalty: Annotated[float | None, _sampling_option("1 is none.")] = None
    num_beams: Annotated[int | None, _sampling_option("Beams of a beam search.")] = None
    greedy: Annotated[bool, _sampling_option("Always take the likeliest token.", "--greedy")] = False
    seed: Annotated[int | None, _sampling_option("The same seed gives the same text.")] = None
    n: Annotated[int | None, _sampling_option("Answers to each prompt.", "--n", "-n")] = None
    stop: Annotated[list[str], _sampling_option("A text that ends the answer. May be repeated.")] = field(
        default_factory=list
    )
    quantization: Annotated[Literal["8bit", "4bit"] | None, _sampling_option("Load the model so.")] = None
    rope_alpha: Annotated[float | None, _sampling_option("NTK scaling for longer texts.")] = None
    return_token_ids: Annotated[
        bool, _sampling_option("Token ids too, in the JSON.", "--return-token-ids")
    ] = False

    def as_request(self) -> dict[str, Any]:
        """The fields of a `generate` request that were given."""
        rest = {name: getattr(self, name) for name in ("quantization", "rope_alpha", "return_token_ids")}
        names = [item.name for item in fields(self) if item.name not in (*rest, "greedy")]
        sampling = {name: getattr(self, name) for name in names}
        sampling["do_sample"] = False if self.greedy else None
        return given(sampling=given(**sampling)) | given(
            **rest | {"return_token_ids": self.return_token_ids or None}
        )


@dataclass(frozen=True)
class Scoring:
    """Which text is scored, and in which windows."""

    file: Annotated[
        str, _scoring_option("A UTF-8 text; incoming/… is on the volume, - is stdin.", "--file", "-f")
    ]
    context: Annotated[
        int | None, _scoring_option("Tokens of a window; the model's, at most 2048, unless given.")
    ] = None
    stride: Annotated[
        int | None, _scoring_option("Tokens from window to window; half of one unless given.")
    ] = None
    quantization: Annotated[Literal["8bit", "4bit"] | None, _scoring_option("Load the model so.")] = None
    rope_alpha: Annotated[float | None, _scoring_option("NTK scaling for longer texts.")] = None

    def as_request(self) -> dict[str, Any]:
        """The fields of a `perplexity` request that were given, save the text."""
        names = ("context", "stride", "quantization", "rope_alpha")
        return given(**{name: getattr(self, name) for name in names})


def given(**values: object) -> dict[str, Any]:
    """Only the values that were given: for all others the service's own defaults hold."""
    return {name: value for name, value in values.items() if value not in (None, [], {})}
