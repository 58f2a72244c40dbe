"""Options that several commands share: a dataclass of options is one parameter of a command."""

import functools
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from graftwerk.completion import DEFAULT_URL, adapter_names, job_ids, model_names, template_names
from graftwerk.request_parts import DType

if TYPE_CHECKING:
    from graftwerk.client import Client


@dataclass(frozen=True)
class Connection:
    """Address of the service and the key."""

    url: Annotated[
        str, typer.Option(envvar="GRAFTWERK_URL", help="Address of the service.", rich_help_panel="Service")
    ] = DEFAULT_URL
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="GRAFTWERK_API_KEY", help="Bearer key.", rich_help_panel="Service", show_default=False
        ),
    ] = None

    def open(self) -> "Client":
        """Returns a client of this service."""
        from graftwerk.client import Client

        return Client(self.url, self.api_key)


@dataclass(frozen=True)
class ChainSubmission:
    """Form of the output of jobs that are submitted."""

    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Submit and return immediately.", rich_help_panel="Job")
    ] = False
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show the plan and do nothing.", rich_help_panel="Job"),
    ] = False
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="Print the job (or the plan) as JSON, and only that.", rich_help_panel="Job"
        ),
    ] = False
    verbose: Annotated[
        bool,
        typer.Option("--verbose", "-v", help="Print all details of the result.", rich_help_panel="Job"),
    ] = False


@dataclass(frozen=True)
class Submission(ChainSubmission):
    """Submission of a job and the form of its output."""

    after: Annotated[
        list[str],
        typer.Option(
            help="Run only after this job has succeeded. May be repeated.",
            metavar="ID",
            rich_help_panel="Job",
            show_default=False,
            autocompletion=job_ids,
        ),
    ] = field(default_factory=list)


ModelName = Annotated[
    str, typer.Argument(help="Name of the model.", show_default=False, autocompletion=model_names)
]
Adapters = Annotated[
    list[str],
    typer.Option(
        "--adapters",
        "-a",
        help='Names in order, separated by commas or repeated; "name@0.5" sets the scale.',
        show_default=False,
        autocompletion=adapter_names,
    ),
]
Target = Annotated[str, typer.Option("--target", "-t", help="Name of the new model.", show_default=False)]


def _option(panel: str, help_text: str, *names: str, metavar: str | None = None) -> Any:
    return typer.Option(*names, help=help_text, metavar=metavar, rich_help_panel=panel, show_default=False)


_output_option = functools.partial(_option, "Output")
_prompt_option = functools.partial(_option, "Prompt")
_sampling_option = functools.partial(_option, "Sampling")
_scoring_option = functools.partial(_option, "Text")


@dataclass(frozen=True)
class Output:
    """Layout of the new model."""

    output_format: Annotated[
        Literal["huggingface", "meta", "gguf"] | None, _output_option("Default: huggingface.")
    ] = None
    dtype: Annotated[
        DType | None,
        _output_option(
            "Default: each tensor's own. float32, float16, bfloat16; of gguf also q8_0, q4_k_m and the other types.",
            metavar="DTYPE",
        ),
    ] = None
    max_shard_size: Annotated[str | None, _output_option("For example 5GB.")] = None
    ranks: Annotated[int | None, _output_option("Number of rank files of a meta output.")] = None
    imatrix_text_file: Annotated[
        str | None,
        _output_option(
            "Text on the volume (incoming/…) from which the importance matrix of a gguf output is computed."
        ),
    ] = None
    imatrix_file: Annotated[
        str | None, _output_option("Importance matrix on the volume (incoming/…), written by llama-imatrix.")
    ] = None
    force: Annotated[
        bool, _output_option("Compute it even if an identical request has made it before.", "--force")
    ] = False

    def as_request(self) -> dict[str, Any]:
        """Returns the fields of a request that were given."""
        matrix = given(text_file=self.imatrix_text_file, file=self.imatrix_file)
        return given(
            output_format=self.output_format, dtype=self.dtype, max_shard_size=self.max_shard_size, ranks=self.ranks,
            imatrix=matrix or None, force=self.force or None,
        )  # fmt: skip


@dataclass(frozen=True)
class Arithmetic:
    """Computation of a merge."""

    rounding: Annotated[
        Literal["per_adapter", "once"] | None,
        typer.Option(help="Default: per_adapter.", show_default=False),
    ] = None
    no_verify: Annotated[bool, typer.Option("--no-verify", help="Skip the verification of the result.")] = (
        False
    )
    base_precision: Annotated[
        Literal["original", "dequantized"] | None,
        typer.Option(
            help="dequantized: round the base to 4 bits and back first, as QLoRA has seen it. Default: original.",
            show_default=False,
        ),
    ] = None
    compare_precisions: Annotated[
        bool, typer.Option("--compare-precisions", help="Measure the difference between both precisions.")
    ] = False

    def as_request(self) -> dict[str, Any]:
        """Returns the fields of a request that were given."""
        return given(
            rounding=self.rounding, verify=False if self.no_verify else None, base_precision=self.base_precision,
            compare_precisions=self.compare_precisions or None,
        )  # fmt: skip


@dataclass(frozen=True)
class Prompts:
    """Prompts and their template."""

    prompt: Annotated[list[str], _prompt_option("Prompt. May be repeated.", "--prompt", "-p")] = field(
        default_factory=list
    )
    prompts_file: Annotated[
        str | None, _prompt_option("File with one prompt per line; incoming/… is on the volume.")
    ] = None
    template: Annotated[
        str | None,
        typer.Option(
            help="For example alpaca. Default: the model's own or none.",
            rich_help_panel="Prompt",
            show_default=False,
            autocompletion=template_names,
        ),
    ] = None
    system: Annotated[str | None, _prompt_option("System text.")] = None
    input: Annotated[str | None, _prompt_option("Input of an instruction template.")] = None
    response_format: Annotated[
        str | None, _prompt_option("Form of the outputs: json, or a file with a JSON schema.")
    ] = None
    guided_regex: Annotated[str | None, _prompt_option("Regular expression that each output matches.")] = None

    def as_request(self) -> dict[str, Any]:
        """Returns the fields of a request that were given, except the prompts and the form."""
        return given(template=self.template, system=self.system, input=self.input)


@dataclass(frozen=True)
class ToolOptions:
    """Tools that the model may call, and variables for its own chat template."""

    tools: Annotated[
        str | None, _prompt_option("JSON file with functions that the model may call, in OpenAI's form.")
    ] = None
    tool_choice: Annotated[
        str | None, _prompt_option("auto, none, required, or the name of a function to call.")
    ] = None
    chat_template_kwargs: Annotated[
        str | None,
        _prompt_option("""Variables for the model's chat template: '{"enable_thinking": false}'."""),
    ] = None


@dataclass(frozen=True)
class SamplingOptions:
    """Choice of the next token. The service's defaults apply to options that are not given."""

    max_new_tokens: Annotated[int | None, _sampling_option("Largest number of new tokens.")] = None
    temperature: Annotated[float | None, _sampling_option("Below 1 favors likely tokens; 0 is greedy.")] = (
        None
    )
    top_k: Annotated[int | None, _sampling_option("Sample from the k most likely tokens; 0 is all.")] = None
    top_p: Annotated[
        float | None, _sampling_option("Sample from the most likely tokens with this total probability.")
    ] = None
    min_p: Annotated[
        float | None, _sampling_option("Drop tokens below this share of the most likely one.")
    ] = None
    repetition_penalty: Annotated[float | None, _sampling_option("1 turns it off.")] = None
    num_beams: Annotated[int | None, _sampling_option("Number of beams of a beam search.")] = None
    greedy: Annotated[bool, _sampling_option("Always take the most likely token.", "--greedy")] = False
    seed: Annotated[int | None, _sampling_option("The same seed gives the same text.")] = None
    n: Annotated[int | None, _sampling_option("Number of outputs per prompt.", "--n", "-n")] = None
    stop: Annotated[list[str], _sampling_option("Text that ends the output. May be repeated.")] = field(
        default_factory=list
    )
    quantization: Annotated[
        Literal["8bit", "4bit"] | None, _sampling_option("Quantize the model while it is loaded.")
    ] = None
    rope_alpha: Annotated[float | None, _sampling_option("NTK scaling for longer contexts.")] = None
    return_token_ids: Annotated[
        bool, _sampling_option("Include token ids in the JSON.", "--return-token-ids")
    ] = False

    def as_request(self) -> dict[str, Any]:
        """Returns the fields of a `generate` request that were given."""
        rest = {name: getattr(self, name) for name in ("quantization", "rope_alpha", "return_token_ids")}
        names = [item.name for item in fields(self) if item.name not in (*rest, "greedy")]
        sampling = {name: getattr(self, name) for name in names}
        sampling["do_sample"] = False if self.greedy else None
        return given(sampling=given(**sampling)) | given(
            **rest | {"return_token_ids": self.return_token_ids or None}
        )


@dataclass(frozen=True)
class ScoredText:
    """Text to score, and its windows."""

    file: Annotated[
        str, _scoring_option("UTF-8 text file; incoming/… is on the volume, - is stdin.", "--file", "-f")
    ]
    context: Annotated[
        int | None, _scoring_option("Tokens per window. Default: the model's context, at most 2048.")
    ] = None
    stride: Annotated[
        int | None, _scoring_option("Tokens from window to window. Default: half a window.")
    ] = None
    quantization: Annotated[
        Literal["8bit", "4bit"] | None, _scoring_option("Quantize the model while it is loaded.")
    ] = None
    rope_alpha: Annotated[float | None, _scoring_option("NTK scaling for longer contexts.")] = None

    def as_request(self) -> dict[str, Any]:
        """Returns the fields of a `perplexity` request that were given, except the text."""
        names = ("context", "stride", "quantization", "rope_alpha")
        return given(**{name: getattr(self, name) for name in names})


@dataclass(frozen=True)
class Tokenization:
    """Token ids in place of texts, and special tokens."""

    token_ids: Annotated[
        list[str], _scoring_option("Ids to turn into a text, 1,15043,3186 for example; may be repeated.")
    ] = field(default_factory=list)
    no_special_tokens: Annotated[
        bool, typer.Option("--no-special-tokens", help="Leave out the token at the beginning.")
    ] = False
    parse_special: Annotated[
        bool, typer.Option("--parse-special", help="Turn text such as </s> into that token.")
    ] = False
    pieces: Annotated[bool, typer.Option("--pieces", help="Print tokens as the vocabulary writes them.")] = (
        False
    )

    def as_request(self) -> dict[str, Any]:
        """Returns the fields of a `tokenize` request that were given, except texts and token ids."""
        return given(
            add_special_tokens=False if self.no_special_tokens else None,
            parse_special=self.parse_special or None,
            return_pieces=self.pieces or None,
        )


def given(**values: object) -> dict[str, Any]:
    """Returns the values that were given; the service has defaults for all others."""
    return {name: value for name, value in values.items() if value not in (None, [], {})}
