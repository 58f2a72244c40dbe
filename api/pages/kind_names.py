"""Names of the kinds of job for people, on all pages."""

from flask_babel import lazy_gettext

KIND_NAMES = {
    "import": lazy_gettext("Import"),
    "convert": lazy_gettext("Convert"),
    "merge": lazy_gettext("Merge"),
    "verify": lazy_gettext("Verify"),
    "generate": lazy_gettext("Generate"),
    "compare": lazy_gettext("Compare"),
    "embed": lazy_gettext("Embed"),
    "perplexity": lazy_gettext("Perplexity"),
    "tokenize": lazy_gettext("Tokenize"),
    "extend-tokenizer": lazy_gettext("Extend tokenizer"),
    "extract": lazy_gettext("Extract adapter"),
    "combine": lazy_gettext("Combine adapters"),
    "publish-to-hub": lazy_gettext("Publish to the Hub"),
}


def kind_names() -> dict[str, str]:
    """Returns the names in the language of the request."""
    return {kind: str(name) for kind, name in KIND_NAMES.items()}
