"""Commands of a chat: lines that begin with `/`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

from graftwerk.arguments import parse_adapters, parse_variant
from graftwerk.chat import saved
from graftwerk.chat.comparing import print_two_answers
from graftwerk.chat.conversation import adapter_name
from graftwerk.chat.replies import ended_job
from graftwerk.chat.state import Chat
from graftwerk.errors import UsageError
from graftwerk.inference_results import CompareResult
from graftwerk.quantities import adapter_label


@dataclass(frozen=True)
class Command:
    """A command: its argument and effect in words, and the function that runs it."""

    argument: str
    effect: str
    run: Callable[[Chat, str], None]


def run_command(chat: Chat, line: str) -> None:
    """Runs the command of a line that begins with `/`.

    Raises:
        UsageError: there is no such command, or its argument is not valid.
        ApiError: the service would refuse the next request; nothing is changed then.
    """
    name, argument = [*line.split(maxsplit=1), ""][:2]
    if name not in COMMANDS:
        near = get_close_matches(name, COMMANDS, n=3)
        meant = f"Did you mean {' or '.join(near)}? " if near else ""
        raise UsageError(
            f"There is no command {name}, and nothing was sent to the model.",
            f"{meant}/help lists the commands; // begins a text that starts with a slash.",
        )
    COMMANDS[name].run(chat, argument.strip())


def _help(chat: Chat, _: str) -> None:
    width = max(len(f"{name} {command.argument}") for name, command in COMMANDS.items())
    for name, command in COMMANDS.items():
        chat.note(f"{f'{name} {command.argument}':{width}}  {command.effect}")
    chat.note(KEYS)
    chat.note(_settings(chat))


def _settings(chat: Chat) -> str:
    conversation = chat.conversation
    seed = conversation.options.get("sampling", {}).get("seed", "random")
    template = conversation.options.get("template", "the model's own")
    found = {"model": conversation.label, "template": template, "seed": seed, "system": conversation.system}
    return "Now: " + ", ".join(f"{name} {value}" for name, value in found.items() if value is not None)


def _system(chat: Chat, text: str) -> None:
    chat.change(replace(chat.conversation, system=text or None))
    chat.note("The system text is set." if text else "There is no system text now.")


def _model(chat: Chat, text: str) -> None:
    if not text:
        chat.note(f"The model is {chat.conversation.label}.")
        return
    choice = parse_variant(text)
    chat.change(chat.conversation.with_options(model=choice["model"], adapters=choice.get("adapters")))
    chat.note(f"The model is {chat.conversation.label} now.")


def _adapter(chat: Chat, text: str) -> None:
    chat.change(chat.conversation.with_options(adapters=parse_adapters([text]) or None))
    chat.note(f"The model is {chat.conversation.label} now.")


def _scale(chat: Chat, text: str) -> None:
    name, _, number = text.replace("@", " ").partition(" ")
    if not number:
        raise UsageError("/scale needs an adapter and a factor.", "Write /scale NAME 0.5.")
    adapters = chat.conversation.options.get("adapters", [])
    if name not in map(adapter_name, adapters):
        listed = ", ".join(map(adapter_label, adapters)) or "none"
        raise UsageError(
            f"{name} is not an adapter of this chat; its adapters: {listed}.",
            "/adapter chooses the adapters.",
        )
    (scaled,) = parse_adapters([f"{name}@{number.strip()}"])
    chosen = [scaled if adapter_name(adapter) == name else adapter for adapter in adapters]
    chat.change(chat.conversation.with_options(adapters=chosen))
    chat.note(f"The model is {chat.conversation.label} now.")


def _seed(chat: Chat, text: str) -> None:
    if text and not text.isdecimal():
        raise UsageError(f"{text!r} is not a seed.", "Write /seed and a whole number, or /seed alone.")
    chat.change(chat.conversation.with_seed(int(text) if text else None))
    chat.note(f"The seed is {int(text)} now." if text else "Each answer has a new random seed now.")


def _template(chat: Chat, text: str) -> None:
    chat.change(chat.conversation.with_options(template=text or None))
    chat.note(f"The template is {text or 'the model’s own'} now.")


def _save(chat: Chat, text: str) -> None:
    file = _file(text, "/save")
    saved.save(chat.conversation, file)
    chat.note(f"{len(chat.conversation.turns)} turns were saved to {file}.")


def _load(chat: Chat, text: str) -> None:
    file = _file(text, "/load")
    chat.change(saved.load(file))
    chat.note(f"{len(chat.conversation.turns)} turns with {chat.conversation.label} were loaded from {file}.")


def _file(text: str, command: str) -> Path:
    if not text:
        raise UsageError(f"{command} needs a file.", f"Write {command} chat.json.")
    return Path(text).expanduser()


def _compare(chat: Chat, text: str) -> None:
    if not text:
        raise UsageError("/compare needs a model.", "Write /compare MODEL or /compare MODEL+adapter.")
    if chat.conversation.question is None:
        raise UsageError("There is no question to compare the answers of.", "Ask something first.")
    job = ended_job(chat.client, chat.conversation.comparison(parse_variant(text)), chat.notes)
    if job is not None and isinstance(job.result, CompareResult):
        print_two_answers(chat.console, job.result)


def _reset(chat: Chat, _: str) -> None:
    chat.conversation.turns.clear()
    chat.note("The conversation begins again.")


def _quit(chat: Chat, _: str) -> None:
    chat.is_over = True


KEYS = "Enter sends, Alt-Enter begins a new line, Ctrl-C stops an answer, Ctrl-D ends the chat."

COMMANDS: Mapping[str, Command] = {
    "/help": Command("", "lists the commands and the present settings", _help),
    "/system": Command("[TEXT]", "sets the system text; alone: none", _system),
    "/model": Command("MODEL[+ADAPTER…]", "chats with another model, with these adapters", _model),
    "/adapter": Command("[NAME,…]", "sets the adapters, in order; alone: none", _adapter),
    "/scale": Command("NAME FACTOR", "sets the scale of an adapter", _scale),
    "/seed": Command("[NUMBER]", "sets the seed; alone: a random one for each answer", _seed),
    "/template": Command("[NAME]", "sets the prompt template; alone: the model's own", _template),
    "/save": Command("FILE", "saves the conversation and its settings", _save),
    "/load": Command("FILE", "continues a saved conversation", _load),
    "/compare": Command(
        "MODEL[+ADAPTER…]", "has another model answer the last question too, with the same seed", _compare
    ),
    "/reset": Command("", "clears the conversation, keeps the settings", _reset),
    "/quit": Command("", "ends the chat, as Ctrl-D does", _quit),
}
