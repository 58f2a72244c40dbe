"""Bundles of options: a dataclass of options is one parameter of a command."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, TypeVar, cast, get_type_hints

Command = TypeVar("Command", bound=Callable[..., None])


def expanded(command: Command) -> Command:
    """Returns the command with each dataclass parameter replaced by one parameter per field, as typer needs it."""
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
