"""Conversation with a model: its turns, and the options of every request."""

from dataclasses import dataclass, field, replace
from typing import Self

from graftwerk.models import JsonObject
from graftwerk.quantities import adapter_label

Turn = dict[str, str]

LOADING = ("quantization", "rope_alpha")
"""Options of a `generate` request that belong to each variant of a comparison."""


@dataclass
class Conversation:
    """Turns so far, the system text, and the options of every request: model, adapters, template, sampling."""

    options: JsonObject
    system: str | None = None
    turns: list[Turn] = field(default_factory=list)

    @property
    def label(self) -> str:
        """Model and adapters, joined by +."""
        return choice_label(self.options)

    @property
    def question(self) -> str | None:
        """The last text of the user."""
        return next((turn["content"] for turn in reversed(self.turns) if turn["role"] == "user"), None)

    def request(self, text: str) -> JsonObject:
        """Returns the request for the next turn, after the user's `text`."""
        messages = [*self._start, *self.turns, {"role": "user", "content": text}]
        return self.options | {"kind": "generate", "messages": messages, "fit_context": True}

    def comparison(self, other: JsonObject) -> JsonObject:
        """Returns the request that has this model and another one answer the last question."""
        last = max(place for place, turn in enumerate(self.turns) if turn["role"] == "user")
        loading = {name: self.options[name] for name in LOADING if name in self.options}
        shared = {name: value for name, value in self.options.items() if name in ("template", "sampling")}
        mine = {"model": self.options["model"], "adapters": self.options.get("adapters", [])}
        variants = [
            variant | loading | {"label": label}
            for variant, label in zip(
                (mine, other), _labels(choice_label(mine), choice_label(other)), strict=True
            )
        ]
        messages = [*self._start, *self.turns[: last + 1]]
        return shared | {"kind": "compare", "variants": variants, "messages": messages, "fit_context": True}

    def add(self, text: str, reply: str) -> None:
        """Adds a turn of the user and one of the model."""
        self.turns += [{"role": "user", "content": text}, {"role": "assistant", "content": reply}]

    def with_options(self, **options: object) -> Self:
        """Returns this conversation with other options; None resets one to the default of the service."""
        changed = self.options | options
        return replace(self, options={name: value for name, value in changed.items() if value is not None})

    def with_seed(self, seed: int | None) -> Self:
        """Returns this conversation with another seed; None is a new random one for each answer."""
        sampling = {name: value for name, value in self.options.get("sampling", {}).items() if name != "seed"}
        seeds = {} if seed is None else {"seed": seed}
        return self.with_options(sampling=sampling | seeds or None)

    @property
    def _start(self) -> list[Turn]:
        return [{"role": "system", "content": self.system}] if self.system else []


def choice_label(choice: JsonObject) -> str:
    """Returns model and adapters as commands take them: `llama+zh+alpaca@0.5`."""
    return "+".join([choice["model"], *map(adapter_label, choice.get("adapters", []))])


def adapter_name(adapter: str | JsonObject) -> str:
    """Returns the name of an adapter of a request."""
    return adapter if isinstance(adapter, str) else str(adapter["name"])


def _labels(one: str, other: str) -> tuple[str, str]:
    return one, other if one != other else f"{other} (2)"
