"""The nineteen ways in which the merging scripts of 2023 went wrong without a word, one test a number.

docs/jobs/merge.md lists them under the same numbers. Here each is either merged to what PEFT computes or refused by its code.
"""

import json
import os
import pickle
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from services.errors import (
    ConfigMismatch,
    GraftwerkError,
    IncompleteAdapter,
    ModelExists,
    ShapeMismatch,
    UnknownAdapterKey,
    UnsafePickle,
    VocabularyMismatch,
    WrongAdapterOrder,
)
from services.kinds.merge import MergeRequest
from services.models.store import ModelStore
from services.preflight import preflight
from services.progress import Progress
from tests.job_context import job_context
from tests.reference.make_original import SMALL, random_state, save_original, split_ranks
from tests.reference.peft_merge import (
    State,
    make_adapter,
    peft_merged,
    random_model,
    rewrite_weights,
    save_model,
    write_tokenizer,
)
from tests.reference.tensor_files import embedding_shapes, pair_shapes, write_adapter, write_base
from tests.reference.torch_files import torch_archive
from worker.models import merge as merge_job

PAGE = Path(__file__).resolve().parents[2] / "docs" / "jobs" / "merge.md"
EMBEDDINGS = ["embed_tokens", "lm_head"]


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    """An empty volume."""
    return ModelStore(tmp_path)


def request(*adapters: str, base: str = "base", target: str = "new") -> MergeRequest:
    return MergeRequest(kind="merge", base=base, adapters=list(adapters), target=target)


def assert_refused(
    store: ModelStore, error: type[GraftwerkError], *adapters: str, says: str, base: str = "base"
) -> None:
    """By preflight, and again by the worker, which leaves no model."""
    for door in (
        lambda: preflight(request(*adapters, base=base), store, {}),
        lambda: merge_job.run(request(*adapters, base=base), job_context(store.root)),
    ):
        with pytest.raises(error) as caught:
            door()
        assert says in f"{caught.value.message} {caught.value.hint}"
    assert not (store.root / "new").exists()


def stored(folder: Path) -> State:
    return {name: t for path in folder.glob("*.safetensors") for name, t in load_file(path).items()}


def assert_as_peft(store: ModelStore, adapters: Sequence[Path], dtype: torch.dtype = torch.float16) -> None:
    """The published model has every tensor of the base, and PEFT's bits in each."""
    merge_job.run(request(*(adapter.name for adapter in adapters)), job_context(store.root))
    found, expected = stored(store.root / "new"), peft_merged(random_model(dtype), adapters)
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []
    untouched = random_model(dtype).state_dict()
    assert any(not torch.equal(expected[name], untouched[name]) for name in untouched)


def merged_as_peft(store: ModelStore, **options: Any) -> None:
    save_model(random_model(torch.float16), store.root / "base")
    assert_as_peft(store, [make_adapter(store.root / "adapter", seed=1, **options)])


@pytest.mark.parametrize(("ending", "shards"), [("safetensors", 1), ("safetensors", 3), ("bin", 1)])
def test_01_a_base_in_safetensors_or_in_one_file_has_its_weights_merged(
    store: ModelStore, ending: str, shards: int
) -> None:
    save_model(random_model(torch.float16), store.root / "base", ending=ending, shards=shards)
    assert_as_peft(store, [make_adapter(store.root / "adapter", seed=1)])


def test_02_adapter_keys_that_match_nothing_are_refused(store: ModelStore) -> None:
    write_base(store.root / "base")
    shapes = {key.replace("q_proj", "W_pack"): shape for key, shape in pair_shapes().items()}
    write_adapter(store.root / "other", shapes, target_modules=["W_pack", "v_proj"])
    assert_refused(store, UnknownAdapterKey, "other", says="self_attn.W_pack.weight")


def test_03_keys_that_carry_the_adapters_name_are_merged(store: ModelStore) -> None:
    save_model(random_model(torch.float16), store.root / "base")
    adapter = make_adapter(store.root / "adapter", seed=1)
    expected = peft_merged(random_model(torch.float16), [adapter])
    rewrite_weights(adapter, inner_name="default")
    merge_job.run(request("adapter"), job_context(store.root))
    found = stored(store.root / "new")
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_04_an_empty_adapter_is_refused(store: ModelStore, ending: str) -> None:
    write_base(store.root / "base")
    folder = write_adapter(store.root / "empty", {})
    if ending == "bin":
        (folder / "adapter_model.safetensors").unlink()
        torch.save({}, folder / "adapter_model.bin")
    assert_refused(store, IncompleteAdapter, "empty", says="holds no tensors")


def test_05_rslora_is_scaled_by_the_root_of_the_rank(store: ModelStore) -> None:
    merged_as_peft(store, use_rslora=True, lora_alpha=9)


def test_06_the_magnitudes_of_dora_are_merged(store: ModelStore) -> None:
    merged_as_peft(store, use_dora=True, target_modules=["q_proj", "down_proj"])


def test_07_rank_and_alpha_patterns_are_honoured(store: ModelStore) -> None:
    merged_as_peft(store, rank_pattern={"q_proj": 4}, alpha_pattern={r"layers\.1\.mlp\.up_proj": 40})


def test_08_lora_on_the_embeddings_is_merged(store: ModelStore) -> None:
    merged_as_peft(store, target_modules=["embed_tokens", "q_proj"])


def test_09_an_extended_tokenizer_without_embeddings_is_refused(store: ModelStore) -> None:
    """32000 and 49953 in the large."""
    write_base(store.root / "base")
    write_adapter(store.root / "chinese", pieces=113)
    assert_refused(store, VocabularyMismatch, "chinese", says="a tokenizer of 113 tokens")


def test_10_a_rank_that_is_not_that_of_the_tensors_is_refused(store: ModelStore) -> None:
    write_base(store.root / "base")
    write_adapter(store.root / "other", r=16)
    assert_refused(store, ShapeMismatch, "other", says="says rank 16")


def test_11_three_adapters_in_the_wrong_order_are_refused_with_the_right_one(store: ModelStore) -> None:
    write_base(store.root / "base")
    for name, rows in (("llama", 113), ("plus", 113), ("alpaca", 114)):
        write_adapter(store.root / name, {**pair_shapes(), **embedding_shapes(rows)}, pieces=rows)
    data = bytearray((store.root / "plus" / "adapter_model.safetensors").read_bytes())
    data[-2:] = b"\x00\x3c"  # one weight of its own: it is not the first adapter under another name
    (store.root / "plus" / "adapter_model.safetensors").write_bytes(data)
    assert_refused(store, WrongAdapterOrder, "llama", "alpaca", "plus", says="is: llama, plus, alpaca")


def test_12_an_output_that_is_the_base_is_refused(store: ModelStore) -> None:
    weights = write_base(store.root / "base") / "model.safetensors"
    write_adapter(store.root / "adapter")
    before = weights.stat()
    with pytest.raises(ValidationError, match="never overwrites"):
        request("adapter", target="base")
    write_base(store.root / "new")
    with pytest.raises(ModelExists):
        merge_job.run(request("adapter"), job_context(store.root))
    after = weights.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_13_embeddings_without_rows_are_refused(store: ModelStore) -> None:
    write_base(store.root / "base")
    write_adapter(store.root / "zero", {**pair_shapes(), **embedding_shapes(0)}, modules_to_save=EMBEDDINGS)
    assert_refused(store, IncompleteAdapter, "zero", says="ZeRO-3")


def test_14_parts_of_a_crashed_run_do_not_go_into_the_next(store: ModelStore) -> None:
    save_model(random_model(torch.float16), store.root / "base")
    adapter = make_adapter(store.root / "adapter", seed=1)
    stale = store.root / ".staging" / "crashed"
    shutil.copytree(save_model(random_model(torch.float32), store.root / "stale"), stale / "stale")
    shutil.copy(stale / "stale" / "model.safetensors", stale / "model-00001-of-00002.safetensors")
    assert_as_peft(store, [adapter])
    assert [path.name for path in (store.root / "new").glob("*.safetensors")] == ["model.safetensors"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_15_every_tensor_keeps_the_bases_dtype(store: ModelStore, dtype: torch.dtype) -> None:
    save_model(random_model(dtype), store.root / "base")
    adapter = make_adapter(store.root / "adapter", seed=1, vocabulary=113, modules_to_save=EMBEDDINGS)
    write_tokenizer(adapter, 113)
    assert_as_peft(store, [adapter], dtype)
    assert {tensor.dtype for tensor in stored(store.root / "new").values()} == {dtype}


def test_16_sizes_of_llama_2_come_from_its_own_files(store: ModelStore) -> None:
    """Grouped heads and norm_eps 1e-5: the scripts knew the sizes by a name such as 65B."""
    params = {**SMALL.params, "norm_eps": 1e-5}
    save_original(store.root / "base", split_ranks(random_state(SMALL), 2), params)
    make_adapter(store.root / "adapter", seed=1)
    merge_job.run(request("adapter"), job_context(store.root))
    config = json.loads((store.root / "new" / "config.json").read_text())
    sizes = {"num_attention_heads": 8, "num_key_value_heads": 4, "num_hidden_layers": 3, "rms_norm_eps": 1e-5}
    assert {key: config[key] for key in sizes} == sizes


def test_16_sizes_that_disagree_with_the_tensors_are_refused(store: ModelStore) -> None:
    params = {**SMALL.params, "n_kv_heads": 8}
    save_original(store.root / "base", split_ranks(random_state(SMALL), 2), params)
    make_adapter(store.root / "adapter", seed=1)
    assert_refused(store, ConfigMismatch, "adapter", says="n_kv_heads")


def test_17_embeddings_are_found_in_any_shard(store: ModelStore) -> None:
    base = save_model(random_model(torch.float16), store.root / "base", shards=2)
    index_path = base / "model.safetensors.index.json"
    index = json.loads(index_path.read_text())
    first, last = sorted(set(index["weight_map"].values()))
    shards = {file: load_file(base / file) for file in (first, last)}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        shards[last][name] = shards[index["weight_map"][name]].pop(name)
        index["weight_map"][name] = last
    for file, state in shards.items():
        save_file(state, base / file)
    index_path.write_text(json.dumps(index))
    adapter = make_adapter(store.root / "adapter", seed=1, vocabulary=113, modules_to_save=EMBEDDINGS)
    write_tokenizer(adapter, 113)
    assert_as_peft(store, [adapter])


class Crash(BaseException):
    """Ends the job like a killed process: no handler catches it."""


def test_18_a_crash_leaves_nothing_that_looks_complete(store: ModelStore) -> None:
    save_model(random_model(torch.float16), store.root / "base")
    adapter = make_adapter(store.root / "adapter", seed=1)

    def crash(progress: Progress) -> None:
        if progress.fraction == 1:
            raise Crash

    with pytest.raises(Crash):
        merge_job.run(request("adapter"), job_context(store.root, report=crash))
    assert store.names() == ["adapter", "base"]
    assert_as_peft(store, [adapter])


class Evil:
    """Object that calls a function when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_19_a_pickle_is_refused_and_not_run(store: ModelStore, tmp_path: Path) -> None:
    write_base(store.root / "base")
    folder = write_adapter(store.root / "evil")
    (folder / "adapter_model.safetensors").unlink()
    content = pickle.dumps({"weight": Evil(tmp_path / "run")}, protocol=2)
    (folder / "adapter_model.bin").write_bytes(torch_archive({"data.pkl": content, "version": b"3\n"}))
    assert_refused(store, UnsafePickle, "evil", says="mkdir")
    assert not (tmp_path / "run").exists()


def test_the_page_lists_every_number_that_has_a_test_here() -> None:
    section = PAGE.read_text(encoding="utf-8").split("## Failures that used to be silent")[1].split("## ")[0]
    listed = [int(number) for number in re.findall(r"^\| (\d+) \|", section, re.MULTILINE)]
    tested = {int(match[1]) for name in globals() if (match := re.match(r"test_(\d\d)_", name))}
    assert listed == list(range(1, 20))
    assert tested == set(listed)
