"""Published artifacts, known by the SHA-256 of their weight file: the base of each and the adapter before it.

Source: `SHA256.md` of ymcui/Chinese-LLaMA-Alpaca (commit 090475fb) and the model cards of the project; Plus and Pro
editions of Alpaca were trained on LLaMA-Plus. The miniature's two adapters (examples/miniature/SHA256SUMS) are here too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from services.errors import WrongAdapterOrder


@dataclass(frozen=True, slots=True)
class KnownAdapter:
    """A published adapter: its original base model and the adapter that must be merged before it."""

    name: str
    base: str
    before: str | None = None


def _family(size: str, digests: Mapping[str, str]) -> dict[str, KnownAdapter]:
    plus = f"Chinese-LLaMA-Plus-{size}"
    return {
        digest: KnownAdapter(
            f"{name}-{size}",
            f"LLaMA-{size}",
            plus if name in ("Chinese-Alpaca-Plus", "Chinese-Alpaca-Pro") else None,
        )
        for name, digest in digests.items()
    }


KNOWN_ADAPTERS: Mapping[str, KnownAdapter] = {
    **_family("7B", {
        "Chinese-LLaMA": "2a2c24d096f5d509f24946fdbd8c25e1ce4a0acb955902f7436d74c0c0379d86",
        "Chinese-LLaMA-Plus": "8c928db86b2a0cf73f019832f921eb7e1e069ca21441b4bfa12c4381c6cc46be",
        "Chinese-Alpaca": "0d9b6ed8e4a7d1ae590a16c89a452a488d66ff07e45487972f61c2b6e46e36de",
        "Chinese-Alpaca-Plus": "4ee0bf805c312a9a771624d481fbdb4485e1b0a70cd2a8da9f96137f177b795d",
        "Chinese-Alpaca-Pro": "3cd2776908c3f5efe68bf6cf0248cb0e80fb7c55a52b8406325c9f0ca37b8594",
    }),
    **_family("13B", {
        "Chinese-LLaMA": "6a4ce789d219bde122f8d9a20371937f2aa2ee86a2311d9f5e303df2e774f9fc",
        "Chinese-LLaMA-Plus": "784fcff9c4bdf4e77d442a01158e121caf8fcce0f97ffb32396fe7a3617ee7e8",
        "Chinese-Alpaca": "cb8dda3c005f3343a0740dcd7237fbb600cb14b6bff9b6f3d488c086a2f08ada",
        "Chinese-Alpaca-Plus": "a1fcdcb6d7e1068f925fb36ec78632c76058ba12ba352bed4d44060b8e6f4706",
        "Chinese-Alpaca-Pro": "f076b20fc2390ddbc35fd56d580d46ea834b33bbae34a4bb3cb7b571e60602e0",
    }),
    **_family("33B", {
        "Chinese-LLaMA": "93a449bafb71ff1bb74a4a21e64e102e5078e5c3898eb40d013790072a0fa3de",
        "Chinese-LLaMA-Plus": "16f2544f4b5be9840dbb1a8071a9bc42627ed4232be3b0b600b43f7b4b5f08a7",
        "Chinese-Alpaca": "6b39da4c682e715a9de30b247b7e9b812d2d54f7d320ec9b452000a5cd4d178d",
        "Chinese-Alpaca-Plus": "411f5b9351abcc33c13a82bdd97ddcff81ad7993a8ddb83085b7ea97fad92fc7",
        "Chinese-Alpaca-Pro": "0e7ba4951f605d2c0a7f0bcb983d7f6ed075c8dd23fbbcbc8a8c9643247212a3",
    }),
    "9709486e06f6c21f31549b97e6d4e40f0652dea7ac67b57ceb19ee1d3e45998f":
        KnownAdapter("miniature chinese-llama-lora", "miniature llama"),
    "124e1f5324fa5eaadccb3800d837d817fe80c907dc0d0da203f09eea6b7fdbbd":
        KnownAdapter("miniature chinese-alpaca-lora", "miniature llama", "miniature chinese-llama-lora"),
}  # fmt: skip

KNOWN_BASES: Mapping[str, str] = {
    "700df0d3013b703a806d2ae7f1bfb8e59814e3d06ae78be0c66368a50059f33d": "LLaMA-7B",
    "745bf4e29a4dd6f411e72976d92b452da1b49168a4f41c951cfcc8051823cf08": "LLaMA-13B",
    "e23294a58552d8cdec5b7e8abb87993b97ea6eced4178ff2697c02472539d067": "LLaMA-33B",
    "0087155d6df07106c1d910bfeb6aab1be8e612dfbf2b56ddfb4ccbde7dbd50d0": "LLaMA-7B",
    "dd20cdee2637408c6ab88c13f5c27d153bacd0e99f2d55f6a66fbd0269944436": "LLaMA-13B",
    "9c2a7223ab5f9cf3d46913d2b776e99cbd6ed93f69991594b92a8cef0c681a78": "LLaMA-33B",
    "804294e14814d040d7695750f90e792af0cd76af8b4d017b95b99d65b054f68c": "miniature llama",
}
"""The first weight file of the original checkpoints, and of their Hugging Face conversions of 2023."""

KNOWN_TOKENIZERS: Mapping[str, str] = {
    "9e556afd44213b6bd1be2b850ebbbd98f5481437a8021afaf58ee7fb1818d347": "LLaMA (32000)",
    "e2676d4ca29ca1750f6ff203328d73b189321dc5776ceede037cbd36541d70c0": "Chinese-LLaMA (49953)",
    "2d967e855b1213a439df6c8ce2791f869c84b4f3b6cfacf22b86440b8192a2f8": "Chinese-Alpaca (49954)",
}


def check_known_order(adapters: Sequence[tuple[str, str | None]], merged_already: Sequence[str]) -> None:
    """Checks that each known adapter (name on the volume, SHA-256 of the weight file) follows the one that it needs.

    Args:
        merged_already: digests of adapters that the base has merged, from its lineage.

    Raises:
        WrongAdapterOrder: a known adapter lacks the one that must come before it; both are named.
    """
    before = [KNOWN_ADAPTERS[digest].name for digest in merged_already if digest in KNOWN_ADAPTERS]
    unknown_before = False
    for name, digest in adapters:
        known = KNOWN_ADAPTERS.get(digest or "")
        if known is None:
            unknown_before = True
            continue
        if known.before is not None and known.before not in before and not unknown_before:
            found = before[-1] if before else "nothing"
            raise WrongAdapterOrder(
                f"Adapter {name} is {known.name}, which was trained on {known.base} with {known.before} merged "
                f"in; here {found} comes before it.",
                f"Put {known.before} before it.",
                order=_fitting_order(adapters, merged_already),
            )
        before.append(known.name)


def _fitting_order(adapters: Sequence[tuple[str, str | None]], merged_already: Sequence[str]) -> list[str]:
    """Returns the adapters' names, each known one after the one that it needs; empty if one of those is missing."""
    placed = {KNOWN_ADAPTERS[digest].name for digest in merged_already if digest in KNOWN_ADAPTERS}
    left, order = dict(adapters), list[str]()
    while left:
        known = {name: KNOWN_ADAPTERS.get(digest or "") for name, digest in left.items()}
        fitting = [name for name, found in known.items() if found is None or found.before in (None, *placed)]
        if not fitting:
            return []
        first = fitting[0]
        order.append(first)
        del left[first]
        if (found := known[first]) is not None:
            placed.add(found.name)
    return order
