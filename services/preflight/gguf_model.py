"""Plan of a job that runs a GGUF model in llama.cpp."""

from pathlib import Path

from services.adapters.gguf_adapter_file import check_gguf_adapter
from services.architectures.checkpoint_reader import read_checkpoint
from services.architectures.gguf_memory import llama_cpp_bytes
from services.backend import check_forms, llama_cpp_fields
from services.errors import NotReady, UnsupportedOption, WrongModelKind
from services.files.gguf_files import read_gguf_model
from services.generate_engines import ENGINES
from services.kinds.generate import GenerateRequest
from services.kinds.shared import ModelRequest
from services.models.summary import kind_of_folder
from services.preflight.plan import PROCESS_BYTES, Inputs, Plan, PlannedRead, convert_first


def plan_gguf_model(request: ModelRequest, inputs: Inputs) -> Plan:
    """Returns the plan of a GGUF model with its adapters.

    Raises:
        UnsupportedOption: llama.cpp does not do what is requested; the message names it.
        WrongModelKind: `GENERATE_ENGINE` names an engine that does not run GGUF models, or an adapter is not a GGUF file.
        NotReady: no worker has llama.cpp.
        AdapterMismatch, UnsupportedAdapter: an adapter does not fit.
        GraftwerkError: any other error that the files give a reason for.
    """
    _check_engine(request, inputs)
    check_gguf_request(request)
    folder = inputs.folders[request.model]
    checkpoint = read_checkpoint(folder)
    if isinstance(request, GenerateRequest) and request.is_guided:
        check_forms(drops_spaces=_drops_spaces(folder))
    reads = [PlannedRead(name=request.model, role="model", size_bytes=checkpoint.size_bytes)]
    for choice in request.adapters:
        check_adapter_kind(choice.name, request.model, kind_of_folder(inputs.folders[choice.name]))
        found = check_gguf_adapter(inputs.folders[choice.name], folder)
        reads.append(PlannedRead(name=choice.name, role="adapter", size_bytes=found.size_bytes))
    return Plan(
        kind=request.kind,
        reads=reads,
        engine="llama.cpp",
        peak_memory_bytes=PROCESS_BYTES + llama_cpp_bytes(checkpoint, inputs.engines.gguf),
    )


def check_gguf_request(request: ModelRequest) -> None:
    """Refuses by name what llama.cpp does not do.

    Raises:
        UnsupportedOption: the message names the option.
    """
    if not isinstance(request, GenerateRequest):
        raise UnsupportedOption(
            f"{request.model!r} is a GGUF model, which llama.cpp runs; {request.kind} jobs need a huggingface model.",
            convert_first(request.model),
        )
    for name in ("quantization", "rope_alpha", "score_prompt", "exact"):
        if getattr(request, name, None):
            raise UnsupportedOption(
                f"llama.cpp, which runs the GGUF model {request.model!r}, does not have {name}.",
                f"Leave {name} out. {convert_first(request.model)}",
            )
    llama_cpp_fields(request.sampling)


def check_adapter_kind(name: str, model: str, kind: str) -> None:
    """Raises WrongModelKind if an adapter of a GGUF model is not a GGUF file itself."""
    if kind == "gguf":
        return
    raise WrongModelKind(
        f"{name!r} is of kind {kind!r}; the GGUF model {model!r} takes adapters that are GGUF files.",
        f"Convert the adapter, naming the model that it was trained on: graftwerk convert {name} {name}-gguf "
        "--output-format gguf --base BASE"
        if kind == "adapter"
        else "Name an adapter.",
    )


def _check_engine(request: ModelRequest, inputs: Inputs) -> None:
    if inputs.engines.of("gguf") is not None:
        return
    setting = inputs.engines.setting
    if setting in ENGINES["gguf"]:
        raise NotReady(
            f"{request.model!r} is a GGUF model, and no worker has llama.cpp.",
            "Install the package xllamacpp (the extra gguf-engine) where the generate worker runs.",
        )
    raise WrongModelKind(
        f"{request.model!r} is a GGUF model, and GENERATE_ENGINE is {setting!r}.",
        f"Set it to auto or llama.cpp. {convert_first(request.model)}",
    )


def _drops_spaces(folder: Path) -> bool:
    metadata = read_gguf_model(folder).metadata
    is_sentencepiece = metadata.get("tokenizer.ggml.model") == "llama"
    return is_sentencepiece and metadata.get("tokenizer.ggml.add_space_prefix", True) is not False
