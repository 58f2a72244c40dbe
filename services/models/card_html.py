"""Model cards as HTML: Markdown of foreign folders, rendered so that nothing in it can load or run."""

import re
from collections.abc import Iterable, Iterator

from huggingface_hub.repocard import REGEX_YAML_BLOCK
from markdown_it import MarkdownIt
from markdown_it.token import Token

HEADINGS = {"h1": "h3", "h2": "h4", "h3": "h5", "h4": "h6", "h5": "h6"}
"""Headings of a card, below those of the page that shows it."""

SCROLLED = '<div class="scroll" tabindex="0">'
"""Start of the element around a table that may be wider than the page; people without a mouse can scroll it too."""

WEB_ADDRESS = re.compile(r"https?://", re.IGNORECASE)


def card_html(text: str) -> str:
    """Returns the Markdown of a model card, without its metadata, as HTML.

    HTML in the card becomes text, an image its description. Links lead to addresses of the web only: a relative one would
    be an address of this service.
    """
    markdown = MarkdownIt("js-default", {"linkify": False})
    tokens = list(_harmless(markdown.parse(REGEX_YAML_BLOCK.sub("", text, count=1))))
    return str(markdown.renderer.render(tokens, markdown.options, {}))


def _harmless(tokens: Iterable[Token]) -> Iterator[Token]:
    for token in tokens:
        token.tag = HEADINGS.get(token.tag, token.tag)
        token.attrs.pop("style", None)  # alignment of columns; the policy of the pages refuses inline styles
        if token.type == "image":
            yield Token("text", "", 0, content=f"[{token.content}]")
            continue
        if token.type == "link_open":
            _restrict(token)
        if token.type == "table_open":
            yield Token("html_block", "", 0, content=SCROLLED)
        if token.children is not None:
            token.children = list(_harmless(token.children))
        yield token
        if token.type == "table_close":
            yield Token("html_block", "", 0, content="</div>\n")


def _restrict(link: Token) -> None:
    if WEB_ADDRESS.match(str(link.attrs.get("href", ""))):
        link.attrs["rel"] = "noopener noreferrer nofollow"
    else:
        link.attrs.pop("href", None)
