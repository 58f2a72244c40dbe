"""llama.cpp behind the interface of the reference engine."""

from dataclasses import dataclass, field
from typing import ClassVar

from services.backend import check_forms, llama_cpp_fields
from services.errors import UnsupportedOption
from services.generate import Event, GenerationRequest
from services.generate.sequence import SequenceState
from worker.inference.served_engine import ServedEngine


@dataclass(slots=True, eq=False, kw_only=True)
class LlamaCppEngine(ServedEngine):
    """The sequences of one model and its adapters, which its process always applies."""

    name: ClassVar[str] = "llama.cpp"
    starting: ClassVar[str] = "loading into llama.cpp"
    install_hint: ClassVar[str] = "Install the version of xllamacpp that pyproject.toml names."

    _drops_spaces: bool = field(init=False)

    def __post_init__(self) -> None:
        ServedEngine.__post_init__(self)
        tokenizer = self.loaded.tokenizer
        self._drops_spaces = bool(tokenizer.without_first_space(tokenizer.token_bytes()))

    def check_options(self, request: GenerationRequest) -> None:
        """Raises UnsupportedOption if llama.cpp does not have a setting of a request, or does not score prompts."""
        llama_cpp_fields(request.sampling)
        if request.grammar is not None:
            check_forms(drops_spaces=self._drops_spaces)
        if request.prompt_logprobs is not None:
            raise UnsupportedOption(
                "llama.cpp does not return log-probabilities of the prompt.",
                "Leave score_prompt out, or convert the model to huggingface.",
            )

    def end_of_stream(self, sequence: SequenceState) -> Event:
        """Returns the end of a sequence by a token that llama.cpp knows as an end, and the model's files do not name."""
        return sequence.finish("stop")
