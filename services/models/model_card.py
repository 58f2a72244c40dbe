"""Model card of a made model: `README.md` with the Hub's front matter, for people who have the folder and not the service.

Front matter: huggingface/hub-docs `modelcard.md`. The card names inputs and figures, never the model's own name, so that a
copy under another name has the same card.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from services.adapters.adapter import CONFIG_FILE
from services.errors import GraftwerkError
from services.files.front_matter import CARD_NAME
from services.files.json_file import read_json_if_present
from services.files.tensors import DTYPE_NAMES
from services.models.card_texts import CHECKS, LOADING
from services.models.digests import digest_file
from services.models.known_artifacts import KNOWN_ADAPTERS
from services.models.licenses import License, joint_license, license_of
from services.models.manifest import InputEntry, Manifest, read_manifest
from services.models.store import ModelStore

BASE_ROLES: Mapping[str, Sequence[str]] = {
    "merge": ("base", "adapter"), "convert": ("source",), "extend-tokenizer": ("base", "addition"),
    "extract": ("base",), "combine": ("adapter",),
}  # fmt: skip
"""Roles of the inputs that the front matter calls `base_model`, by kind of job."""

TITLES: Mapping[str, str] = {
    "merge": "{base} with {adapter} merged in", "convert": "{source}, converted",
    "extend-tokenizer": "Tokenizer of {base}, extended by {addition}", "extract": "LoRA of {model} over {base}",
    "combine": "{adapter} combined",
}  # fmt: skip
"""Headings by kind of job, with the names of the inputs by their role."""

LIBRARIES: Mapping[str, str] = {
    "huggingface": "transformers", "tokenizer": "transformers", "adapter": "peft", "gguf": "gguf",
}  # fmt: skip
"""The Hub's library of each kind of model; none reads Meta's layout."""

HUB_ID = re.compile(r"(?!incoming/)([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@.*)?")
"""Name of the source of an import from the Hub, with its revision."""

FIGURES: Mapping[str, str] = {
    "rows_recomputed": "rows recomputed in float64", "largest_difference": "largest difference of a value",
    "largest_share_of_tolerance": "largest share of the rounding's tolerance",
}  # fmt: skip
LOGITS: Mapping[str, str] = {
    "largest_difference": "largest difference of a logit", "relative_difference": "the same relative to the logits",
    "greedy_agreement": "positions with the same most likely token",
}  # fmt: skip
RESULTS: Mapping[str, str] = {
    "bits_per_weight": "bits a weight", "kl_divergence": "mean KL divergence from the source",
    "same_top_token": "same most likely token as the source", "device": "computed on",
}  # fmt: skip
"""Figures of verification, logits and result that the card shows, with their labels."""


@dataclass(frozen=True, slots=True)
class Origin:
    """An input as the card shows it: its id on the Hub or else its name, and its licence.

    An adapter also has its tuner type and, if its configuration has one, the id on the Hub of the base it was trained on.
    """

    entry: InputEntry
    id: str
    license: License | None = None
    tuner: str | None = None
    trained_on: str | None = None


def write_model_card(folder: Path, manifest: Manifest, store: ModelStore) -> Manifest:
    """Writes the card of a made model into its folder and returns the manifest with the card's digest.

    An existing README.md is replaced: the card names the inputs, whose own cards stay with them.
    """
    path = folder / CARD_NAME
    path.write_text(model_card(manifest, store), encoding="utf-8")
    files = dict(sorted({**manifest.files, CARD_NAME: digest_file(path)}.items()))
    return manifest.model_copy(update={"files": files})


def model_card(manifest: Manifest, store: ModelStore) -> str:
    """Returns the text of the card of a made model."""
    origins = [_origin(entry, store) for entry in manifest.inputs]
    parts = [
        f"---\n{_front_matter(manifest, origins).to_yaml()}\n---",
        f"# {_title(manifest)}",
        f"Made by Graftwerk (`{manifest.operation}`). `manifest.json` has every digest and option.",
        _inputs(origins),
        _facts(manifest),
        *([_warnings(manifest.warnings)] if manifest.warnings else []),
        "## Load it\n\n" + LOADING.get(manifest.kind, LOADING["original"]),
        "## Check the receipt\n\n" + CHECKS.get(manifest.kind, CHECKS["original"]),
        _licenses(origins),
    ]
    return "\n\n".join(parts) + "\n"


# ---- inputs -------------------------------------------------------------------------------------------


def _origin(entry: InputEntry, store: ModelStore) -> Origin:
    folder = store.root / entry.name
    if entry.name not in store.names():
        return Origin(entry, entry.name)
    config = _adapter_config(folder)
    tuner, trained_on = config.get("peft_type"), config.get("base_model_name_or_path")
    return Origin(
        entry, hub_id(store, entry.name) or entry.name, license_of(folder),
        tuner.lower() if isinstance(tuner, str) else None,
        trained_on if isinstance(trained_on, str) and HUB_ID.fullmatch(trained_on) else None,
    )  # fmt: skip


def hub_id(store: ModelStore, name: str) -> str | None:
    """Returns the id on the Hub of a model that was imported from there, or converted from such a model."""
    seen: set[str] = set()
    while name not in seen and name in store.names():
        seen.add(name)
        manifest = read_manifest(store.root / name)
        if manifest is None or not manifest.inputs or manifest.operation not in ("import", "convert"):
            return None
        name = manifest.inputs[0].name
        if manifest.operation == "import":
            found = HUB_ID.fullmatch(name)
            return found.group(1) if found else None
    return None


def _adapter_config(folder: Path) -> Mapping[str, Any]:
    """Returns an adapter's configuration, empty for another model: `read_adapter` reports what is wrong with it."""
    try:
        return read_json_if_present(folder / CONFIG_FILE)
    except GraftwerkError:
        return {}


# ---- front matter -------------------------------------------------------------------------------------


def _front_matter(manifest: Manifest, origins: Sequence[Origin]) -> ModelCardData:
    roles = BASE_ROLES.get(manifest.operation, ())
    sources = [origin for origin in origins if origin.entry.role in roles]
    # an adapter made of adapters fits the base that those were trained on
    ids = [(o.trained_on if manifest.kind == "adapter" else None) or o.id for o in sources]
    bases = [" ".join(id.split()) for id in ids]
    license = joint_license([origin.license for origin in origins])
    tuners = [origin.tuner for origin in origins if origin.tuner]
    kind = [manifest.kind] if manifest.kind in ("gguf", "adapter", "tokenizer") else []
    stated: dict[str, Any] = {
        "base_model": list(dict.fromkeys(bases)), "base_model_relation": _relation(manifest),
        "license": license.id if license else None, "license_name": license.name if license else None,
        "license_link": license.link if license else None, "library_name": LIBRARIES.get(manifest.kind),
        "pipeline_tag": None if manifest.kind == "tokenizer" else "text-generation",
        "tags": list(dict.fromkeys(["graftwerk", manifest.operation, *kind, *tuners])),
    }  # fmt: skip
    return ModelCardData(**{key: value for key, value in stated.items() if value})


def _relation(manifest: Manifest) -> str | None:
    """Returns the Hub's word for a model's relation to its bases, None where it has none: a change of layout."""
    if manifest.kind == "adapter":
        return "adapter"
    if manifest.operation == "merge":
        return "merge"
    return "quantized" if manifest.kind == "gguf" else None


# ---- text ---------------------------------------------------------------------------------------------


def code(text: str) -> str:
    """Returns a text as Markdown's inline code in a table: nothing in it is markup."""
    plain = " ".join(re.sub(r"[\x00-\x1f\x7f|<>]", " ", text).split()) or " "
    longest = max((len(run) for run in re.findall("`+", plain)), default=0)
    fence, space = "`" * (longest + 1), " " if longest else ""
    return f"{fence}{space}{plain}{space}{fence}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _title(manifest: Manifest) -> str:
    names: dict[str, list[str]] = {}
    for entry in manifest.inputs:
        names.setdefault(entry.role, []).append(code(entry.name))
    roles = {role: ", ".join(found) for role, found in names.items()}
    try:
        return TITLES[manifest.operation].format(**roles)
    except KeyError:
        return f"Result of {manifest.operation}: " + ", ".join(roles.values())


def _inputs(origins: Sequence[Origin]) -> str:
    rows = []
    for number, origin in enumerate(origins, start=1):
        entry = origin.entry
        known = KNOWN_ADAPTERS.get(entry.digest or "")
        name = code(origin.id) + (f" ({known.name})" if known else "")
        scale = "" if entry.role != "adapter" else f"{1 if entry.scale is None else entry.scale:g}"
        rows.append(
            [str(number), entry.role, name, scale, code(entry.digest) if entry.digest else "not recorded"]
        )
    return "## Inputs, in order\n\n" + _table(["", "role", "model", "scale", "SHA-256"], rows)


def _facts(manifest: Manifest) -> str:
    rows = [["format", manifest.kind], ["dtypes", _dtypes(manifest)]]
    rows += [[key.replace("_", " "), code(str(value))] for key, value in _options(manifest).items()]
    if manifest.digest is not None:
        rows.append(["digest of all tensors", code(manifest.digest)])
    result = manifest.model_dump(mode="json", include={"result"})["result"]
    verification = result.get("verification")
    if verification:
        rows.append(["verification", "passed" if verification.get("passed") else "not passed"])
        rows += _figures(verification, FIGURES) + _figures(verification.get("logits") or {}, LOGITS)
    rows += _figures(result, RESULTS)
    rows.append(["made with", ", ".join(f"{name} {version}" for name, version in manifest.versions.items())])
    return "## Facts\n\n" + _table(["", ""], [row for row in rows if row[1]])


def _dtypes(manifest: Manifest) -> str:
    counts: dict[str, int] = {}
    for tensor in manifest.tensors.values():
        name = DTYPE_NAMES.get(tensor.dtype, tensor.dtype.lower())
        counts[name] = counts.get(name, 0) + 1
    return ", ".join(f"{dtype} ({count} tensors)" for dtype, count in sorted(counts.items()))


def _options(manifest: Manifest) -> dict[str, Any]:
    """Returns the options that change values, as they were chosen."""
    names = ("rounding", "base_precision", "dtype", "rank", "method", "density", "seed", "pad_token")
    return {name: manifest.options[name] for name in names if manifest.options.get(name) is not None}


def _figures(found: Mapping[str, Any], labels: Mapping[str, str]) -> list[list[str]]:
    return [[label, _shown(found[key])] for key, label in labels.items() if found.get(key) is not None]


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else code(str(value))


def _warnings(warnings: Sequence[str]) -> str:
    return "## Warnings\n\n" + "\n".join(f"- {code(warning)}" for warning in warnings)


def _licenses(origins: Sequence[Origin]) -> str:
    lines = []
    for origin in origins:
        license = origin.license
        stated = "not stated" if license is None else code(license.name or license.id)
        lines.append(f"- {code(origin.id)}: {stated}")
    text = "The inputs' own cards and licences apply; where they differ, all of them do."
    return "## Licences of the inputs\n\n" + text + "\n\n" + "\n".join(lines)
