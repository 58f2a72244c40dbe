"""The service's own sentences in the language of a page.

The API answers in English, with values filled in: a model's name, a number of rows. The catalogue `service` has these sentences with
`{1}`, `{2}`, … for the values (`deploy/sentences.py` takes them from the source). A sentence is recognized by its words, and its values
are copied into the translation. One that is not in the catalogue, or that can be read in two ways, stays English and is marked as such.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import NamedTuple

from babel.messages.mofile import read_mo
from flask import Blueprint, Response, jsonify
from flask_babel import get_locale
from markupsafe import Markup
from pydantic import BaseModel, Field, ValidationError

from api.errors import STATUS_OF, InvalidFields
from api.pages.language import TRANSLATIONS
from api.request_body import read_body
from services.bounded_text import TEXT_LIMIT

DOMAIN = "service"
SOURCE_LANGUAGE = "en"
MOST_TEXTS = 200
"""Most sentences of one request."""

LONGEST_TEXT = 2 * TEXT_LIMIT
"""Most characters of a text: a message and its hint."""

MOST_SENTENCES = 8
"""Most sentences of a text that are translated one by one."""

DEEPEST = 3
"""Most levels of messages within messages."""

KEPT_TEXTS = 2048
"""Sentences whose translations are kept in memory."""

VALUE = re.compile(r"\{(\d+)\}")
END_OF_SENTENCE = re.compile(r"(?<=[.?]) (?=[A-Z`'\"])")
FIELD = re.compile(r"(?P<name>[a-z_]+(\.\w+)*): (?P<message>.+)")
"""A message about a field of a request."""

NAME = r"[\w./*+@-]+|'[^' ]*'"
VALUES = {
    **{word: re.compile(word) for word in ("none", "none of them", "nothing", "no files")},
    "{1} and {2} more": re.compile(r"(.+) and (\d+) more"),
    "{1} and {2}": re.compile(rf"((?:{NAME})(?: and (?:{NAME}))*) and ({NAME})"),
    "{1} or {2}": re.compile(rf"((?:{NAME})(?: or (?:{NAME}))*) or ({NAME})"),
}
"""Words around names in a value: each is a text of the catalogue, and is recognized in a whole value alone."""

FULL_STOP, COLON = "。", "："
TITLES = {error.code: (error.__doc__ or "").splitlines()[0] for error in STATUS_OF}
"""English titles of the errors, by code."""


class Said(NamedTuple):
    """A sentence in the language of a page, or in English; `lang` is empty or `en`."""

    text: str
    lang: str


@dataclass(frozen=True, slots=True)
class Pattern:
    """The words of a sentence around its values, and its translation."""

    words: tuple[str, ...]
    numbers: tuple[int, ...]
    translation: str

    @classmethod
    def of(cls, text: str, translation: str) -> "Pattern":
        """Returns the pattern of a text of the catalogue."""
        parts = VALUE.split(text)
        return cls(tuple(parts[::2]), tuple(map(int, parts[1::2])), translation)

    def fill(self, values: Sequence[str]) -> str:
        """Returns the translation with values, which are in the order of the English words."""
        by_number = dict(zip(self.numbers, values, strict=True))
        return VALUE.sub(lambda found: by_number[int(found[1])], self.translation)

    def values(self, text: str) -> list[str] | None:
        """Returns the values of a text; None if the text is another one or can be read in two ways."""
        first, last = self.words[0], self.words[-1]
        if not self.numbers:
            return [] if text == first else None
        if len(text) < len(first) + len(last) or not text.startswith(first) or not text.endswith(last):
            return None
        return _between(text[len(first) : len(text) - len(last)], self.words[1:-1])


def _between(text: str, words: Sequence[str]) -> list[str] | None:
    """Returns the parts of a text between words; None if there are none, or if there is more than one way to divide it."""
    from_start, rest = [], text
    for word in words:
        value, found, rest = rest.partition(word)
        if not found:
            return None
        from_start.append(value)
    from_start.append(rest)
    from_end, rest = [], text
    for word in reversed(words):
        rest, _, value = rest.rpartition(word)
        from_end.append(value)
    from_end.append(rest)
    return from_start if from_start == from_end[::-1] else None


@cache
def _catalog(language: str) -> dict[str, str]:
    with (TRANSLATIONS / language / "LC_MESSAGES" / f"{DOMAIN}.mo").open("rb") as file:
        return {str(message.id): str(message.string) for message in read_mo(file) if message.id}


@cache
def _patterns(language: str) -> tuple[Pattern, ...]:
    """Returns the patterns of a language, those with the most words first."""
    texts = _catalog(language).items()
    found = [Pattern.of(text, translation) for text, translation in texts if text not in VALUES]
    return tuple(sorted(found, key=lambda pattern: -sum(map(len, pattern.words))))


@lru_cache(KEPT_TEXTS)
def translated(text: str, language: str, levels: int = DEEPEST) -> str | None:
    """Returns a text of the service in a language; None if one of its sentences has no translation.

    `levels` is the number of messages within one another that may follow.
    """
    if len(text) > LONGEST_TEXT or levels == 0:
        return None
    found = _whole(text, language, levels) or _phrase(text, language, levels)
    ends = list(END_OF_SENTENCE.finditer(text))
    if found or len(ends) >= MOST_SENTENCES:
        return found
    for end in ends:
        first = translated(text[: end.start()], language, levels)
        rest = translated(text[end.end() :], language, levels) if first is not None else None
        if rest is not None:
            return f"{first}{rest}"
    return None


def _whole(text: str, language: str, levels: int) -> str | None:
    for pattern in _patterns(language):
        values, end = pattern.values(text), ""
        if values is None:
            continue
        if _has_full_stop(values, pattern, language, levels - 1):
            values[-1], end = values[-1][:-1], FULL_STOP
        said = [_value(value, language, levels - 1) for value in values]
        if None not in said:
            return pattern.fill([value or "" for value in said]) + end
    return None


def _has_full_stop(values: Sequence[str], pattern: Pattern, language: str, levels: int) -> bool:
    """Returns True if the last value has taken the full stop of a phrase; a message within the phrase has one of its own."""
    is_last = bool(values) and not pattern.words[-1] and values[-1].endswith(".")
    return is_last and not (" " in values[-1] and translated(values[-1], language, levels))


def _phrase(text: str, language: str, levels: int) -> str | None:
    """Returns the translation of a phrase that was made a sentence, perhaps behind the name of a field."""
    phrase = text.removesuffix(".")
    found = _whole(phrase, language, levels) or _whole(f"{phrase[:1].lower()}{phrase[1:]}", language, levels)
    field = FIELD.fullmatch(text)
    if found is None and field is not None:
        found = translated(field["message"], language, levels - 1)
        return found and f"{field['name']}{COLON}{found}"
    return found and (
        f"{found}{FULL_STOP}" if text.endswith(".") and not found.endswith(FULL_STOP) else found
    )


def _value(text: str, language: str, levels: int) -> str | None:
    """Returns a value for a translation: the message of an inner error is translated too.

    None if the text holds sentences without a translation: it is more than a value.
    """
    found = _listed(text, language) or (translated(text, language, levels) if " " in text else None)
    return found or (None if END_OF_SENTENCE.search(text) else text)


def _listed(text: str, language: str) -> str | None:
    """Returns a list of names with its words translated; None for another value."""
    for words, pattern in VALUES.items():
        found = pattern.fullmatch(text)
        if found:
            names = [_listed(name, language) or name for name in found.groups()]
            return Pattern.of(words, _catalog(language)[words]).fill(names)
    return None


def say(text: str) -> Said:
    """Returns a text of the service in the language of the current request."""
    language = get_locale().language
    if language == SOURCE_LANGUAGE or not text:
        return Said(text, "")
    found = translated(text, language)
    return Said(text, SOURCE_LANGUAGE) if found is None else Said(found, "")


def sentence(text: str, code: str = "") -> Markup:
    """Returns a text of the service as markup; one that stays English comes after the title of its error, if `code` is one."""
    said = say(text)
    if not said.lang:
        return Markup("{}").format(said.text)
    title = say(TITLES.get(code, "")).text
    return Markup('{}<span lang="{}">{}</span>').format(title, said.lang, said.text)


# ---- for the scripts of the pages ---------------------------------------------------------------------

page = Blueprint("sentences", __name__)


class Texts(BaseModel):
    """Sentences that a page shows, and codes of errors whose titles it needs."""

    texts: list[str] = Field(max_length=MOST_TEXTS)
    codes: list[str] = Field(default=[], max_length=MOST_TEXTS)


@page.post("/sentences")
def sentences() -> Response:
    """Returns sentences of the service in the language of the page, and titles of errors.

    Raises:
        InvalidFields: the body has other fields (422).
    """
    try:
        asked = Texts.model_validate(read_body())
    except ValidationError as error:
        raise InvalidFields.of(error) from error
    response = jsonify(
        texts=[say(text)._asdict() for text in asked.texts],
        titles=[say(TITLES.get(code, "")).text for code in asked.codes],
    )
    response.headers["Cache-Control"] = "no-store"
    return response
