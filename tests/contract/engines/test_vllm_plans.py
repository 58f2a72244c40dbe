"""Plans of a service whose engine is vLLM: what it refuses and warns of before a job is queued."""

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from services.errors import NotReady, UnsupportedOption
from services.generate_engines import Engines
from services.kinds import parse_request
from services.models.store import ModelStore
from services.preflight import preflight
from services.preflight.plan import PROCESS_BYTES, Plan, Servers
from tests.reference.peft_merge import make_adapter

VLLM = Engines("vllm", frozenset({"graftwerk", "vllm"}))


def plan_of(root: Path, engines: Engines = VLLM, **request: Any) -> Plan:
    body = {"kind": "generate", "model": "base", **request}
    body |= {} if "inputs" in body or "text" in body or "variants" in body else {"prompt": "x"}
    return preflight(parse_request(body), ModelStore(root), (), servers=Servers(engines=engines))


def test_the_engine_is_part_of_the_plan(root: Path) -> None:
    plan = plan_of(root)
    assert (plan.engine, plan.warnings) == ("vllm", [])
    assert plan_of(root, adapters=["a"]).warnings == []


def test_vectors_and_scores_are_computed_by_the_reference_engine(root: Path) -> None:
    assert plan_of(root, kind="embed", inputs=["x"]).engine == "graftwerk"
    assert plan_of(root, kind="perplexity", text="x y").engine == "graftwerk"


@pytest.mark.parametrize(
    ("option", "name"),
    [
        ({"quantization": "4bit"}, "quantization"),
        ({"rope_alpha": 2}, "rope_alpha"),
        ({"sampling": {"num_beams": 2}}, "num_beams"),
        ({"sampling": {"typical_p": 0.5}}, "typical_p"),
        ({"sampling": {"no_repeat_ngram_size": 3}}, "no_repeat_ngram_size"),
    ],
)
def test_what_vllm_does_not_have_is_refused_before_the_job_is_queued(
    root: Path, option: Any, name: str
) -> None:
    with pytest.raises(UnsupportedOption, match=f"^vLLM .*{name}") as caught:
        plan_of(root, **option)
    assert caught.value.hint.endswith("have the engine graftwerk generate.")
    assert plan_of(root, Engines(), **option).engine == "graftwerk"


@pytest.mark.parametrize(
    ("adapters", "reason"),
    [
        (["a", "b"], "it applies one adapter to an output, and the request has 2."),
        ([{"name": "a", "scale": 2}], "it does not scale an adapter, and the request scales a by 2."),
    ],
)
def test_a_merged_copy_is_a_warning(root: Path, adapters: list[Any], reason: str) -> None:
    (warning,) = plan_of(root, adapters=adapters).warnings
    assert warning == (
        f"vLLM is started with a merged copy of base and its adapters, which takes time and disk space: {reason}"
    )


def test_the_largest_rank_is_that_of_the_workers(root: Path) -> None:
    make_adapter(root / "wide", seed=5, r=16)
    assert plan_of(root, adapters=["wide"]).warnings == []
    workers = Engines("vllm", frozenset({"vllm"}), adapter_rank=8)
    (warning,) = plan_of(root, workers, adapters=["wide"]).warnings
    assert warning.endswith(": wide has rank 16, and VLLM_ADAPTER_RANK is 8.")


def test_the_memory_has_the_keys_and_values_of_the_server(root: Path) -> None:
    """Its weights have 32 bits each, as on a CPU; the keys and values of all sequences are the setting of the workers."""
    parameters = sum(tensor.numel() for tensor in load_file(root / "base" / "model.safetensors").values())
    workers = Engines("vllm", frozenset({"vllm"}), vllm_cache_bytes=3 * 2**30)
    plan = plan_of(root, workers)
    assert plan.peak_memory_bytes == PROCESS_BYTES + 4 * parameters + 3 * 2**30
    assert plan.kv_cache_bytes is None, "GRAFTWERK_KV_CACHE_BYTES does not limit it"


def test_a_service_without_a_worker_with_vllm_says_so(root: Path) -> None:
    with pytest.raises(NotReady, match="No worker has the engine 'vllm'"):
        plan_of(root, Engines("vllm", frozenset({"graftwerk"})))
