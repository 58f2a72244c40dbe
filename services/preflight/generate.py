"""Preflight of `generate`."""

from pathlib import Path

from services.architectures.tokenizer_files import TokenizerFiles
from services.backend import check_forwardable
from services.chat_output import call_format_of
from services.errors import UnreadableFile, UnsupportedOption
from services.grammar import Grammar, check_grammar, grammar_of
from services.kinds.generate import GenerateRequest
from services.models.prompt_file import read_prompt_file
from services.models.store import ModelStore
from services.models.summary import kind_of_folder
from services.preflight.loaded_model import plan_loaded_model
from services.preflight.plan import Inputs, Plan, PlannedRead
from services.templates import OWN_TEMPLATE, check_text, find_template

PARSED_BYTES = 16 * 2**20
"""Files of prompts up to this size are read at submission; larger ones when the job starts."""


def plan(request: GenerateRequest, inputs: Inputs) -> Plan:
    """Returns the plan of a generate job, on this service or on another server.

    Raises:
        UnreadableFile, SourceNotFound, InvalidName: the file of prompts cannot be used.
        UnknownTemplate, InvalidText: the template or a text cannot be used.
        UnsupportedOption: the other server does not offer an option.
        UnsupportedSchema: the form of the outputs cannot be enforced.
        GraftwerkError: model and adapters cannot be loaded together.
    """
    check_prompts(request, inputs.store)
    if inputs.served is None:
        if request.is_call_required and not inputs.waiting:
            check_tools(request, inputs.folders[request.model])
        return plan_loaded_model(request, inputs)
    check_forwardable(request, inputs.served)
    model = PlannedRead(name=inputs.served.id, role="model", backend=inputs.served.server)
    return Plan(kind=request.kind, reads=[model], engine="remote")


def check_prompts(request: GenerateRequest, store: ModelStore) -> None:
    """Checks texts, template, file of prompts and form of the outputs of a request. Raises as `plan`."""
    if request.prompts_file is not None:
        _check_prompt_file(request.prompts_file, store)
    if request.template not in (None, OWN_TEMPLATE):
        find_template(request.template)
    for text in _texts(request):
        check_text(text)
    grammar = grammar_of(request.schema_text, request.guided_regex)
    if grammar is not None:
        check_grammar(grammar)
    if request.is_call_required:
        for tool in request.offered_tools:
            check_grammar(Grammar(tool.function.schema_text))


def check_tools(request: GenerateRequest, folder: Path) -> None:
    """Refuses a required call that the template cannot describe; a GGUF file's own template is left to the worker.

    Raises:
        UnsupportedOption: the template has no form for calls that is known.
    """
    own = None if kind_of_folder(folder) == "gguf" else TokenizerFiles(folder).chat_template()
    is_own = request.template in (None, OWN_TEMPLATE)
    if kind_of_folder(folder) == "gguf" and is_own:
        return
    if not is_own or own is None or call_format_of(own) is None:
        raise UnsupportedOption(
            f"tool_choice requires a call, and the chat template of {request.model} has no form for tools that is known.",
            "Use a model whose own chat template takes tools, or leave tool_choice out.",
        )


def _check_prompt_file(name: str, store: ModelStore) -> None:
    """Reads a file of prompts; a large one is left to the worker."""
    path = store.incoming(name)
    if path.is_dir():
        raise UnreadableFile(f"{name} is a folder.", "Name one file of prompts in it.")
    if path.stat().st_size <= PARSED_BYTES:
        read_prompt_file(path, name)


def _texts(request: GenerateRequest) -> list[str]:
    texts = [request.prompt, request.system, request.input, request.guided_regex, *(request.prompts or [])]
    texts += [text for message in request.messages or [] for text in message.texts]
    return [text for text in texts if text is not None]
