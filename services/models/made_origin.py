"""Origin of a made model for the metadata of its GGUF file: name, licence and base models.

The name is made from the inputs, never the model's own, so that a copy under another name has the same file.
"""

from collections.abc import Sequence

from services.files.gguf_origin import TEXT_LIMIT, GgufOrigin
from services.models.licenses import License, joint_license, license_of
from services.models.manifest import Manifest, read_manifest
from services.models.model_card import hub_id
from services.models.store import ModelStore

HUB_URL = "https://huggingface.co"


def made_origin(store: ModelStore, inputs: Sequence[str]) -> GgufOrigin:
    """Returns the origin of a model that was made from these models, the base or source first.

    The base models are the inputs; those of a converted merge are the merge's.
    """
    license = joint_license([license_of(store.path(name)) for name in inputs])
    name = " + ".join(_stated_name(store, name) for name in inputs)
    parents = inputs if len(inputs) > 1 else _parents(store, inputs[0])
    return GgufOrigin(_texts(name, license), tuple(_base(store, parent) for parent in parents))


def _texts(name: str, license: License | None) -> dict[str, str]:
    stated = {"name": name}
    if license is not None:
        stated |= {
            "license": license.id, "license.name": license.name or "", "license.link": license.link or "",
        }  # fmt: skip
    return {key: text[:TEXT_LIMIT] for key, text in stated.items() if text}


def _stated_name(store: ModelStore, name: str) -> str:
    """Returns the name that the GGUF file stated which a model was converted from, or else the model's own."""
    manifest = _manifest(store, name)
    stated = manifest.origin.get("name") if manifest else None
    return stated if isinstance(stated, str) and stated else name


def _parents(store: ModelStore, name: str) -> Sequence[str]:
    """Returns the inputs of a merge, and any other model itself."""
    manifest = _manifest(store, name)
    if manifest is None or manifest.operation != "merge":
        return [name]
    return [entry.name for entry in manifest.inputs if entry.role in ("base", "adapter")] or [name]


def _base(store: ModelStore, name: str) -> dict[str, str]:
    id = hub_id(store, name)
    if id is None:
        return {"name": _stated_name(store, name)}
    organization, repository = id.split("/")
    return {"name": repository, "organization": organization, "repo_url": f"{HUB_URL}/{id}"}


def _manifest(store: ModelStore, name: str) -> Manifest | None:
    """Returns the manifest of a model, None if the model is gone or has none."""
    return read_manifest(store.root / name) if name in store.names() else None
