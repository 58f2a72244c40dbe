"""Tokenizer: a codec of plain text, and special tokens around it.

The rule of the original LLaMA code: special tokens are split off first, and each text between them is
encoded on its own. Here that happens only if the caller requests it, by segments or `parse_special`; plain text never
becomes a special token, even if it looks like one.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Protocol

from services.errors import InvalidRequest
from services.templates import BOS, EOS, Segment, Special, Text, check_text


class TextStream(Protocol):
    """Incremental decoder of plain token ids: all its texts together are the codec's `decode` of all ids."""

    def feed(self, token_id: int) -> str: ...

    def flush(self) -> str: ...


class Codec(Protocol):
    """Plain text to ids and back, without special tokens."""

    @property
    def size(self) -> int: ...

    @property
    def plain_contents(self) -> frozenset[str]: ...

    def encode(self, text: str) -> list[int]: ...

    def encode_parts(self, parts: Sequence[str | int]) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def piece(self, token_id: int) -> str: ...

    def id_of(self, piece: str) -> int | None: ...

    def pieces_as_bytes(self) -> list[bytes]: ...

    def stream(self) -> TextStream: ...


def encode_apart(codec: Codec, parts: Sequence[str | int]) -> list[int]:
    """Returns the ids of texts and special tokens, each text encoded on its own."""
    encoded = (codec.encode(part) if isinstance(part, str) else [part] for part in parts)
    return [token_id for ids in encoded for token_id in ids]


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """Tokens in addition to the codec's own vocabulary.

    `ids` maps the text of each special or added token to its id; `hidden` are the ids that `decode` omits by default (an
    added token that is not special is shown). Each of `eos_ids` ends an output; `eos_id` is the one that templates write.
    `plain` are texts of added tokens that the codec itself finds in plain text, whoever wrote it.
    White space before the tokens `before`, and after the tokens `after`, belongs to them.
    """

    ids: Mapping[str, int] = field(default_factory=dict)
    hidden: frozenset[int] = frozenset()
    before: frozenset[int] = frozenset()
    after: frozenset[int] = frozenset()
    plain: frozenset[str] = frozenset()
    bos_id: int | None = None
    eos_id: int | None = None
    eos_ids: frozenset[int] = frozenset()
    pad_id: int | None = None
    add_bos: bool = False


class Tokenizer:
    """Text to token ids and back for one model."""

    def __init__(self, codec: Codec, special: SpecialTokens) -> None:
        self._codec = codec
        self._special = special
        self._contents = {token_id: content for content, token_id in special.ids.items()}
        longest_first = sorted(self.guarded_tokens, key=len, reverse=True)
        self._splitter = re.compile(f"({'|'.join(map(re.escape, longest_first))})") if longest_first else None

    @property
    def vocabulary_size(self) -> int:
        """One more than the largest id: the smallest number of rows of an embedding."""
        return max(self._codec.size, *(token_id + 1 for token_id in self._contents), 0)

    @property
    def text_vocabulary_size(self) -> int:
        """Number of ids that plain text can become; added tokens follow them."""
        return self._codec.size

    @property
    def bos_id(self) -> int | None:
        return self._special.bos_id

    @property
    def eos_id(self) -> int | None:
        return self._special.eos_id

    @property
    def eos_ids(self) -> frozenset[int]:
        """Ids of all tokens that end an output; chat models have several."""
        return self._special.eos_ids

    @property
    def pad_id(self) -> int | None:
        return self._special.pad_id

    @property
    def special_tokens(self) -> Mapping[str, int]:
        """Id of every special or added token by its text."""
        return self._special.ids

    @property
    def guarded_tokens(self) -> frozenset[str]:
        """Texts that become a token only where a template or the caller wants it."""
        return frozenset(self._special.ids) - self._special.plain

    @property
    def hidden_ids(self) -> frozenset[int]:
        """Ids of the special tokens, which are not shown in outputs."""
        return self._special.hidden

    @property
    def add_bos(self) -> bool:
        """True if the model expects its prompts to begin with the beginning-of-text token."""
        return self._special.add_bos

    def encode(self, text: str, *, add_bos: bool | None = None, parse_special: bool = False) -> list[int]:
        """Returns the token ids of a text.

        Args:
            add_bos: Begin with the beginning-of-text token (never twice); None is the model's own rule.
            parse_special: Turn text that looks like a special token into one. Never for text that users typed.

        Raises:
            InvalidText: The text has lone surrogates.
        """
        segments = self.split_special(text) if parse_special else [Text(text)]
        return self.encode_segments(segments, add_bos=add_bos)

    def split_special(self, text: str) -> list[Segment]:
        """Returns the text with its special tokens split off."""
        parts = self._splitter.split(text) if self._splitter else [text]
        # re.split alternates: the group matched every second part.
        return [Special(part) if number % 2 else Text(part) for number, part in enumerate(parts) if part]

    def encode_segments(self, segments: Iterable[Segment], *, add_bos: bool | None = None) -> list[int]:
        """Returns the token ids of texts and special tokens; neighbouring texts are encoded as one.

        Raises:
            InvalidRequest: A required special token is not in the vocabulary.
            InvalidText: A text has lone surrogates.
        """
        parts: list[str | int] = []
        resolved = [self._resolved(segment) for segment in segments]
        for is_text, group in groupby(resolved, key=lambda part: isinstance(part, str)):
            run = list(group)
            parts += ["".join(map(str, run))] if is_text else run
        for part in parts:
            if isinstance(part, str):
                check_text(part)
        ids = self._codec.encode_parts(self._stripped(parts))
        wanted = self.add_bos if add_bos is None else add_bos
        if wanted and self.bos_id is not None and ids[:1] != [self.bos_id]:
            ids.insert(0, self.bos_id)
        return ids

    def _stripped(self, parts: Sequence[str | int]) -> list[str | int]:
        """Returns the parts without the white space that belongs to special tokens next to it."""
        found: list[str | int] = []
        for number, part in enumerate(parts):
            following = parts[number + 1] if number + 1 < len(parts) else None
            if isinstance(part, str):
                text = part.lstrip() if found and found[-1] in self._special.after else part
                text = text.rstrip() if following in self._special.before else text
                found += [text] if text else []
            else:
                found.append(part)
        return found

    def _resolved(self, segment: Segment) -> str | int:
        if isinstance(segment, Text):
            return segment.text
        roles = {BOS.piece: self.bos_id, EOS.piece: self.eos_id}
        found = roles[segment.piece] if segment.piece in roles else self.special_tokens.get(segment.piece)
        if found is not None:
            return found
        if segment.required:
            raise InvalidRequest(
                f"The prompt needs the special token {segment.piece} and this model's vocabulary has none.",
                "Choose a template of the model's own family.",
            )
        return segment.piece

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Returns the text of token ids, as the codec itself (SentencePiece, for example) decodes them.

        Special tokens are omitted; with `skip_special` False they are written, and the texts between them decoded on their
        own. Ids beyond the vocabulary (an embedding padded to a round number) have no text. New tokens decoded without their
        prompt lose the space before their first word with SentencePiece, as an output should.
        """
        hidden = self._hidden(skip_special)
        shown = [
            token_id
            for token_id in ids
            if token_id not in hidden and (token_id in self._contents or 0 <= token_id < self._codec.size)
        ]
        return "".join(
            "".join(map(self._contents.__getitem__, run)) if is_special else self._codec.decode(list(run))
            for is_special, run in groupby(shown, key=self._contents.__contains__)
        )

    def stream_decoder(
        self, skip_special: bool = True, *, shown: frozenset[int] = frozenset()
    ) -> "StreamDecoder":
        """Returns a decoder whose texts together are `decode` of all ids that it was fed, and the special tokens `shown`."""
        return StreamDecoder(self._codec, self._contents, self._hidden(skip_special) - shown)

    def _hidden(self, skip_special: bool) -> frozenset[int]:
        return self._special.hidden if skip_special else frozenset()

    def piece(self, token_id: int) -> str:
        """Returns the token as the vocabulary writes it (`▁Hello`, `<0x0A>`, `</s>`); "" beyond the vocabulary."""
        if token_id in self._contents:
            return self._contents[token_id]
        return self._codec.piece(token_id) if 0 <= token_id < self._codec.size else ""

    def token_bytes(self) -> list[bytes]:
        """Returns the UTF-8 that each id adds to a text, b"" for special and added tokens; some ids have half a character."""
        pieces = self._codec.pieces_as_bytes()
        return [b"" if token_id in self._contents else piece for token_id, piece in enumerate(pieces)]

    def without_first_space(self, pieces: Sequence[bytes]) -> list[int]:
        """Returns the ids that lose their space as the first of a text, as SentencePiece's do; `pieces` are `token_bytes`."""
        words = [
            token_id for token_id, piece in enumerate(pieces) if piece.startswith(b" ") and piece.strip()
        ]
        if not any(self._loses_space(token_id, pieces) for token_id in words[:1]):
            return []
        spaces = [token_id for token_id, piece in enumerate(pieces) if piece.startswith(b" ")]
        return [token_id for token_id in spaces if self._loses_space(token_id, pieces)]

    def _loses_space(self, token_id: int, pieces: Sequence[bytes]) -> bool:
        return self.decode([token_id]).encode() == pieces[token_id][1:]


class StreamDecoder:
    """Incremental decoder: each token id gives the text that is certain by then, never half a character."""

    def __init__(self, codec: Codec, contents: Mapping[int, str], hidden: frozenset[int]) -> None:
        self._codec = codec
        self._contents = contents
        self._hidden = hidden
        self._stream = codec.stream()

    def feed(self, token_id: int) -> str:
        """Returns the text that this token makes certain, which may be empty."""
        if token_id in self._hidden:
            return ""
        if token_id in self._contents:
            return self.flush() + self._contents[token_id]
        return self._stream.feed(token_id) if 0 <= token_id < self._codec.size else ""

    def flush(self) -> str:
        """Returns the text that was held back, at the end of the ids or of a run between special tokens."""
        rest = self._stream.flush()
        self._stream = self._codec.stream()
        return rest
