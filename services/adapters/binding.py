"""Names of an adapter's tensors in the files of a base, and the effect of an adapter on a tied head.

Adapters name the modules of transformers' class; a checkpoint's files may have other names. An adapter that was trained on the
text model alone has that model's names, which are mapped too.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from services.adapters.adapter import Adapter
from services.adapters.expert_packs import expert_pairs
from services.adapters.lora_tensors import LoraPair
from services.architectures.checkpoint import Checkpoint
from services.architectures.mixtures import MixtureClass
from services.errors import AdapterMismatch, UnknownAdapterKey, UnsupportedAdapter

T = TypeVar("T")


def bind(base: Checkpoint, adapter: Adapter) -> Adapter:
    """Returns the adapter with the names of the base's own tensors.

    A tied head has the name that it would have in the base's files.

    Raises:
        UnknownAdapterKey: The base has no tensor of such a name.
        AdapterMismatch: The adapter says that it was trained on another class.
        UnsupportedAdapter: A tuner other than LoRA changes a transposed weight, or the packing of experts is not known.
    """
    _check_class(base, adapter)
    names = _OwnNames(base)
    packed = expert_pairs(adapter.name, adapter.packs, base.config.model_class, base.config.text_source)
    adapter = replace(adapter, pairs={**adapter.pairs, **packed}, packs={})
    bound = replace(
        adapter,
        pairs=_renamed(names, adapter, adapter.pairs), replaced=_renamed(names, adapter, adapter.replaced),
        layers=_renamed(names, adapter, adapter.layers), rows=_renamed(names, adapter, adapter.rows),
    )  # fmt: skip
    model_class = base.config.model_class
    if isinstance(model_class, MixtureClass):
        return _of_parameters(model_class, bound)
    return _transposed(base, bound) if model_class.conv1d else bound


class _OwnNames:
    """Names in the files of a checkpoint by those of the class's modules and of the text model."""

    def __init__(self, base: Checkpoint) -> None:
        self._class = base.config.model_class
        self._by_module = {self._class.module_name(name): name for name in base.tensors}
        self._by_text = {**base.own_names, self._class.head: base.head_name}

    def find(self, name: str) -> str | None:
        module = self._class.module_name(name)
        text = self._class.text_name(name)
        return self._by_module.get(module) or (self._by_text.get(text) if text is not None else None)


def _renamed(names: _OwnNames, adapter: Adapter, changes: Mapping[str, T]) -> dict[str, T]:
    found = {names.find(name) or name: change for name, change in changes.items()}
    if len(found) != len(changes):
        raise UnknownAdapterKey(
            f"Adapter {adapter.name} changes {len(changes) - len(found)} tensors of the base under two names.",
            "Its file mixes the names of two versions of transformers: re-save the adapter with PEFT.",
        )
    return found


def _check_class(base: Checkpoint, adapter: Adapter) -> None:
    """Refuses an adapter whose configuration names another class, which PEFT records if no task was given."""
    mapping: Any = adapter.config.get("auto_mapping")
    trained = mapping.get("base_model_class") if isinstance(mapping, Mapping) else None
    wanted = base.config.model_class.architecture
    if isinstance(trained, str) and trained.endswith("ForCausalLM") and trained != wanted:
        raise AdapterMismatch(
            f"Adapter {adapter.name} was trained on a {trained}; the base {base.folder.name} is a {wanted}.",
            "Use the base that it was trained on.",
        )


def _of_parameters(model_class: MixtureClass, adapter: Adapter) -> Adapter:
    """Returns the adapter with its changes of experts and routers as PEFT merges them into parameters.

    Adapters from transformers 4 name each expert's linear module; PEFT loads them as pairs of the parameters of transformers 5
    (peft/utils/transformers_weight_conversion.py).
    """
    odd = sorted(name for name in adapter.layers if model_class.is_parameter(model_class.module_name(name)))
    if odd:
        raise UnsupportedAdapter(
            f"Adapter {adapter.name} is of type {adapter.config.get('peft_type')} and changes {odd[0]!r}; experts and routers are changed "
            "by plain LoRA pairs alone.",
            "Merge it with the versions of PEFT and transformers that trained it.",
        )

    def rounded(name: str, pair: LoraPair) -> LoraPair:
        is_parameter = model_class.is_parameter(model_class.module_name(name))
        return replace(pair, rounded=True) if is_parameter else pair

    return replace(adapter, pairs={name: rounded(name, pair) for name, pair in adapter.pairs.items()})


def _transposed(base: Checkpoint, adapter: Adapter) -> Adapter:
    """Returns the adapter with its pairs on Conv1D modules transposed, as `fan_in_fan_out` does in PEFT."""
    conv1d = base.config.model_class.conv1d
    odd = sorted(name for name in adapter.layers if name.rsplit(".", 2)[-2] in conv1d)
    if odd:
        raise UnsupportedAdapter(
            f"Adapter {adapter.name} is of type {adapter.config.get('peft_type')} and changes {odd[0]!r}, a Conv1D whose weight is "
            "transposed; only plain LoRA pairs are merged there.",
            "Merge it with PEFT.",
        )

    def turned(name: str, pair: LoraPair) -> LoraPair:
        return replace(pair, transposed=True) if name.rsplit(".", 2)[-2] in conv1d else pair

    return replace(adapter, pairs={name: turned(name, pair) for name, pair in adapter.pairs.items()})


def unties(base: Checkpoint, adapter: Adapter) -> bool:
    """Returns True if a bound adapter changes either of two tied tensors alone, so that the base needs a head of its own.

    As PEFT computes with the adapter unmerged: a change of the head leaves the embedding as it was, and the reverse. Trained rows of
    the embedding apply to the head too. Tensors that are saved whole change both if PEFT kept them tied (`ensure_weight_tying`), or
    if it saved the model's own embeddings (save_embedding_layers) rather than a trained copy.
    """
    embeddings, head = base.embeddings, base.head_name
    if base.head is not None:
        return False
    if any(name in changes for changes in (adapter.pairs, adapter.layers) for name in (embeddings, head)):
        return True
    if head in adapter.rows:
        return True
    if adapter.config.get("ensure_weight_tying"):
        return False
    return any(name in adapter.replaced and _trained_copy(adapter, name) for name in (embeddings, head))


def _trained_copy(adapter: Adapter, name: str) -> bool:
    module = name.removesuffix(".weight")
    return any(f".{module}".endswith(f".{saved}") for saved in adapter.config.get("modules_to_save") or [])


def tie(base: Checkpoint, adapter: Adapter) -> Adapter:
    """Returns a bound adapter for a base that stays tied: a head in its file is a copy of its embedding.

    Raises:
        UnsupportedAdapter: It has a head and no embedding.
    """
    embeddings, head = base.embeddings, base.head_name
    if base.head is not None or head not in adapter.replaced:
        return adapter
    if embeddings not in adapter.replaced:
        raise UnsupportedAdapter(
            f"Adapter {adapter.name} holds {head!r} and no {embeddings!r}; the base ties the two, and the adapter does not name lm_head "
            "in modules_to_save.",
            "Save the adapter again with both, or name lm_head in modules_to_save if it was trained on its own.",
        )
    replaced = {name: tensor for name, tensor in adapter.replaced.items() if name != head}
    return replace(adapter, replaced=replaced, copies={head: adapter.replaced[head]})


def share(base: Checkpoint, adapter: Adapter) -> Adapter:
    """Returns a bound adapter whose change of a tied embedding also applies to the head that a later adapter needs."""
    return (
        replace(adapter, same={base.head_name: base.embeddings})
        if base.embeddings in adapter.changed
        else adapter
    )
