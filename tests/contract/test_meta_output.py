"""Meta's layout written: against what model-parallel training would have saved, and there and back bit for bit."""

import json
import os
import pickletools
import stat
import tracemalloc
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from services.architectures.checkpoint_reader import read_checkpoint
from services.checkpoints import torch_file
from services.checkpoints.torch_file import TorchFile
from services.checkpoints.write_hooks import WriteHooks
from services.checkpoints.write_ledger import TensorPlan
from services.convert import ConvertOptions, convert
from services.errors import (
    GraftwerkError,
    JobCanceled,
    UnsupportedFormat,
    UnsupportedOption,
    VerificationFailed,
    VocabularyMismatch,
)
from services.files.torch_zip import read_torch_header
from services.kinds.convert import ConvertRequest
from services.kinds.merge import MergeRequest
from services.merge import MergeOptions, merge
from services.models.manifest import read_manifest
from services.models.store import ModelStore
from services.preflight import preflight
from services.verify import verify_merge
from tests.job_context import job_context
from tests.reference.huggingface_model import save_llama
from tests.reference.make_original import SMALL, WIDE, Sizes, State, random_state, save_original, split_ranks
from tests.reference.original_llama import original_logits
from tests.reference.peft_merge import make_adapter
from tests.reference.tokenizer_files import piece_names, sentencepiece_file, tiktoken_file
from worker.models import convert as convert_job
from worker.models import merge as merge_job

TOKENS = [1, 57, 100, 3, 99, 12, 76]
RANKS = [(1, SMALL), (2, SMALL), (4, SMALL), (8, WIDE)]


def written(source: Path, target: Path, **options: Any) -> Path:
    target.mkdir()
    convert(source, target, ConvertOptions(**options))
    return target


def to_meta(source: Path, target: Path, **options: Any) -> Path:
    return written(source, target, output_format="meta", **options)


def ranks_of(folder: Path) -> list[State]:
    return [torch.load(path, weights_only=True) for path in sorted(folder.glob("consolidated.*.pth"))]


def without_frequencies(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if name != "rope.freqs"}


def assert_same_bits(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def save_base(folder: Path, **config: Any) -> Path:
    save_llama(folder, **config)
    return folder


# ---- there and back -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("ranks", "sizes"), RANKS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_meta_to_huggingface_and_back_gives_the_bits_of_every_rank(
    tmp_path: Path, ranks: int, sizes: Sizes, dtype: torch.dtype
) -> None:
    """Grouped key-value heads, and 101 tokens that divide by no rank count."""
    parts = split_ranks(random_state(sizes, dtype), ranks)
    source = save_original(tmp_path / "source", parts, sizes.params)

    between = written(source, tmp_path / "between")
    target = to_meta(between, tmp_path / "target", ranks=ranks)

    found = ranks_of(target)
    assert len(found) == ranks
    for part, expected in zip(found, parts, strict=True):
        assert_same_bits(part, without_frequencies(expected))
    assert (target / "tokenizer.model").read_bytes() == (source / "tokenizer.model").read_bytes()


@pytest.mark.parametrize(("ranks", "sizes"), RANKS)
def test_huggingface_to_meta_and_back_gives_the_same_tensors_and_sizes(
    tmp_path: Path, ranks: int, sizes: Sizes
) -> None:
    state = random_state(sizes)
    whole = save_original(tmp_path / "whole", [state], sizes.params)
    base = written(whole, tmp_path / "base")

    target = written(to_meta(base, tmp_path / "between", ranks=ranks), tmp_path / "target")

    assert_same_bits(load_file(target / "model.safetensors"), load_file(base / "model.safetensors"))
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (base, target))
    assert after == before


def test_the_published_vocabulary_splits_into_24976_and_24977_rows(tmp_path: Path) -> None:
    """Chinese-LLaMA's 49,953 tokens over two ranks, as the published 13B files hold them."""
    sizes = replace(SMALL, dim=16, n_heads=4, n_kv_heads=2, n_layers=1, vocab_size=49953, multiple_of=6)
    state = random_state(sizes)
    parts = split_ranks(state, 2)
    source = save_original(tmp_path / "source", parts, sizes.params, pieces=49953)

    target = to_meta(written(source, tmp_path / "between"), tmp_path / "target", ranks=2)

    found = ranks_of(target)
    assert [part["output.weight"].shape[0] for part in found] == [24976, 24977]
    assert [part["tok_embeddings.weight"].shape for part in found] == [(49953, 8), (49953, 8)]
    for part, expected in zip(found, parts, strict=True):
        assert_same_bits(part, without_frequencies(expected))


def test_an_original_checkpoint_is_split_anew(tmp_path: Path) -> None:
    state = random_state(SMALL)
    source = save_original(tmp_path / "source", split_ranks(state, 4), SMALL.params)

    found = ranks_of(to_meta(source, tmp_path / "target", ranks=2))

    for part, expected in zip(found, split_ranks(state, 2), strict=True):
        assert_same_bits(part, without_frequencies(expected))


def test_without_a_rank_count_the_output_has_the_sources(tmp_path: Path) -> None:
    source = save_original(tmp_path / "source", split_ranks(random_state(SMALL), 4), SMALL.params)
    assert len(ranks_of(to_meta(source, tmp_path / "same"))) == 4
    between = written(source, tmp_path / "between")
    assert len(ranks_of(to_meta(between, tmp_path / "one"))) == 1


def test_llama_3s_embeddings_are_split_by_rows(tmp_path: Path) -> None:
    """VocabParallelEmbedding: 301 ranks of bytes and 256 special tokens over two files."""
    sizes = replace(SMALL, vocab_size=557)
    state = random_state(sizes, torch.bfloat16)
    params = {**sizes.params, "rope_theta": 500000.0, "use_scaled_rope": True}
    source = save_original(tmp_path / "source", [state], params)
    (source / "tokenizer.model").write_bytes(tiktoken_file(301))

    target = to_meta(source, tmp_path / "target", ranks=2)

    assert [part["tok_embeddings.weight"].shape for part in ranks_of(target)] == [(278, 48), (279, 48)]
    for part, expected in zip(ranks_of(target), split_ranks(state, 2, embedding_dim=0), strict=True):
        assert_same_bits(part, without_frequencies(expected))
    assert json.loads((target / "params.json").read_text()) == {**params, "vocab_size": 557}


def test_tied_embeddings_write_no_output_weight(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", tie_word_embeddings=True)

    target = to_meta(base, tmp_path / "target", ranks=2)

    assert all("output.weight" not in part for part in ranks_of(target))
    assert read_checkpoint(target).config.tie_word_embeddings
    back = written(target, tmp_path / "back")
    assert_same_bits(load_file(back / "model.safetensors"), load_file(base / "model.safetensors"))


def test_the_original_code_computes_what_transformers_does(tmp_path: Path) -> None:
    """A model that transformers made, run by Meta's forward pass from the files that were written."""
    model = save_llama(tmp_path / "base", torch.float32)
    with torch.no_grad():
        expected = model(torch.tensor([TOKENS])).logits[0]

    target = to_meta(tmp_path / "base", tmp_path / "target")

    params = json.loads((target / "params.json").read_text())
    found = original_logits(ranks_of(target)[0], params, TOKENS)
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5


# ---- the files ----------------------------------------------------------------------------------------


def test_a_file_is_what_torch_would_have_saved(tmp_path: Path) -> None:
    """The same pickle as torch.save's, but for how it memoizes; every tensor its own storage of its own size."""
    state = without_frequencies(random_state(SMALL))
    source = save_original(tmp_path / "source", [state], SMALL.params)

    target = to_meta(source, tmp_path / "target") / "consolidated.00.pth"
    torch.save(ranks_of(tmp_path / "target")[0], tmp_path / "consolidated.00.pth")

    with zipfile.ZipFile(target) as found, zipfile.ZipFile(tmp_path / "consolidated.00.pth") as expected:
        assert _calls(found) == _calls(expected)
        assert {n.filename for n in found.infolist()} < {n.filename for n in expected.infolist()}
        for name in ("byteorder", "version"):
            assert found.read(f"consolidated.00/{name}") == expected.read(f"consolidated.00/{name}")
        assert {info.compress_type for info in found.infolist()} == {zipfile.ZIP_STORED}
    loaded = torch.load(target, weights_only=True)
    for tensor in loaded.values():
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


def _calls(archive: zipfile.ZipFile) -> list[tuple[str, Any]]:
    """A pickle's operations without its memo, whose use the format leaves open."""
    operations = pickletools.genops(archive.read("consolidated.00/data.pkl"))
    memo = ("BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET")
    strings = ("BINUNICODE", "SHORT_BINUNICODE")
    kept = [(op.name, arg) for op, arg, _ in operations if op.name not in memo]
    return [item for item in kept if item[0] not in strings or str(item[1]).endswith(".weight")]


def test_data_begins_at_multiples_of_64_bytes(tmp_path: Path) -> None:
    source = save_original(tmp_path / "source", [random_state(SMALL)], SMALL.params)
    headers = read_torch_header(to_meta(source, tmp_path / "target", ranks=2) / "consolidated.01.pth")
    assert len(headers) == 30
    assert {header.offset % 64 for header in headers.values()} == {0}


def test_torch_maps_the_file_instead_of_reading_it(tmp_path: Path) -> None:
    source = save_original(tmp_path / "source", [random_state(SMALL)], SMALL.params)
    path = to_meta(source, tmp_path / "target") / "consolidated.00.pth"
    assert_same_bits(torch.load(path, weights_only=True, mmap=True), without_frequencies(random_state(SMALL)))


def test_a_member_with_sizes_of_64_bits_is_read_by_torch_and_by_us(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Members from 2 GiB on have such headers; here each has."""
    monkeypatch.setattr(torch_file, "ZIP64_FROM_BYTES", 0)
    tensor = torch.arange(30, dtype=torch.float32).reshape(5, 6)
    path = tmp_path / "file.pth"

    with TorchFile(path, [TensorPlan("a", "F32", (5, 6))]) as file, file.open_tensor("a") as member:
        member.write(tensor.numpy().tobytes())

    assert torch.equal(torch.load(path, weights_only=True)["a"], tensor)
    assert read_torch_header(path)["a"].offset % 64 == 0


def test_files_are_readable_by_all(tmp_path: Path) -> None:
    source = save_original(tmp_path / "source", [random_state(SMALL)], SMALL.params)
    before = os.umask(0o077)
    try:
        target = to_meta(source, tmp_path / "target", ranks=2)
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in target.glob("*.pth")} == {0o644}


def test_memory_stays_flat(tmp_path: Path) -> None:
    """A tensor of 64 MB, converted from a safetensors file to two ranks, takes blocks of it only.

    torch's own allocations do not show here: zipfile's and pickle's would.
    """
    sizes = replace(SMALL, dim=16, n_heads=4, n_kv_heads=2, n_layers=1, vocab_size=2_000_000, multiple_of=6)
    state = random_state(sizes)
    source = save_original(tmp_path / "source", [state], sizes.params)
    (source / "tokenizer.model").unlink()
    (tmp_path / "target").mkdir()

    tracemalloc.start()
    convert(source, tmp_path / "target", ConvertOptions(output_format="meta", ranks=2))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 8_000_000


# ---- params.json --------------------------------------------------------------------------------------


def test_params_are_the_sources_own(tmp_path: Path) -> None:
    params = {**SMALL.params, "rope_theta": 20000.0, "ffn_dim_multiplier": 1.05, "unheard_of": [1]}
    source = save_original(tmp_path / "source", [random_state(SMALL)], params)
    found = json.loads((to_meta(source, tmp_path / "target") / "params.json").read_text())
    assert found == {**params, "vocab_size": 101}


def test_params_of_a_huggingface_model_are_complete(tmp_path: Path) -> None:
    """128 is the formula's width without a multiplier; 144 takes 1.1 and a multiple of 16."""
    base = save_base(
        tmp_path / "base", intermediate_size=144, rope_theta=500000.0, max_position_embeddings=4096
    )
    found = json.loads((to_meta(base, tmp_path / "target") / "params.json").read_text())
    assert found == {
        "dim": 48, "n_layers": 3, "n_heads": 8, "n_kv_heads": 4, "norm_eps": 1e-5, "rope_theta": 500000.0,
        "multiple_of": 16, "ffn_dim_multiplier": 1.1, "vocab_size": 101,
    }  # fmt: skip


def test_llama_3s_scaling_is_said_in_metas_words(tmp_path: Path) -> None:
    scaling = {
        "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    base = save_base(tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    config.pop("rope_parameters", None)
    (base / "config.json").write_text(json.dumps({**config, "rope_theta": 500000.0, "rope_scaling": scaling}))

    target = to_meta(base, tmp_path / "target")

    found = json.loads((target / "params.json").read_text())
    assert (found["use_scaled_rope"], found["rope_scaling_factor"]) == (True, 32.0)
    assert read_checkpoint(target).config.rope_scaling == scaling


# ---- refused ------------------------------------------------------------------------------------------


def refused(base: Path, error: type[GraftwerkError], *phrases: str, **options: Any) -> None:
    """By intake and by the conversion, in the same words, before anything is written."""
    (base.parent / "target").mkdir()
    request = ConvertRequest(kind="convert", source=base.name, target="new", output_format="meta", **options)
    store = ModelStore(base.parent)
    doors = (
        lambda: preflight(request, store, {}),
        lambda: convert(base, base.parent / "target", ConvertOptions(output_format="meta", **options)),
    )
    for door in doors:
        with pytest.raises(error) as caught:
            door()
        for phrase in phrases:
            assert phrase in f"{caught.value.message} {caught.value.hint}"
    assert list((base.parent / "target").iterdir()) == []


@pytest.mark.parametrize(
    ("ranks", "phrase"),
    [
        (3, "The model has 8 attention heads, which 3 ranks do not divide (2 are left)"),
        (8, "The model has 4 key-value heads, which 8 ranks do not divide (4 are left)"),
    ],
)
def test_ranks_that_do_not_divide_the_heads_are_refused(tmp_path: Path, ranks: int, phrase: str) -> None:
    refused(save_base(tmp_path / "base"), UnsupportedOption, phrase, ranks=ranks)


def test_ranks_that_do_not_divide_the_feed_forward_are_refused(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", intermediate_size=142)
    refused(
        base, UnsupportedOption, "142 feed-forward rows, which 4 ranks do not divide (2 are left)", ranks=4
    )


def test_biases_are_refused_by_name(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", attention_bias=True)
    refused(base, UnsupportedFormat, "'model.layers.0.self_attn.q_proj.bias'", "has no biases")


def test_rows_of_padding_are_refused_with_both_sizes(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    (base / "tokenizer.model").write_bytes(sentencepiece_file(piece_names(100)))
    refused(base, VocabularyMismatch, "101 rows", "100 tokens")


def test_heads_that_do_not_make_up_the_hidden_size_are_refused(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", head_dim=8)
    refused(base, UnsupportedFormat, "8 heads of 8", "48")


def test_a_scaling_without_a_word_is_refused(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    config.pop("rope_parameters", None)
    (base / "config.json").write_text(
        json.dumps({**config, "rope_scaling": {"type": "linear", "factor": 2.0}})
    )
    refused(base, UnsupportedOption, "'linear'", "use_scaled_rope")


@pytest.mark.parametrize("output", ["huggingface", "gguf"])
def test_ranks_of_another_output_are_an_invalid_request(output: Any) -> None:
    with pytest.raises(ValidationError, match=f"ranks = 2 applies to output_format 'meta' only.*{output}"):
        ConvertRequest(kind="convert", source="a", target="b", output_format=output, ranks=2)


def test_a_cancel_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    source = save_original(tmp_path / "source", [random_state(SMALL)], SMALL.params)
    store = ModelStore(tmp_path / "volume")
    done: list[int] = []

    def check_canceled() -> None:
        if len(done) > 6:
            raise JobCanceled("canceled")

    watch = WriteHooks(report=lambda progress: done.append(progress.done), check_canceled=check_canceled)
    options = ConvertOptions(output_format="meta", ranks=2)
    with pytest.raises(JobCanceled), store.publishing("model", execution="e1") as staging:
        convert(source, staging, options, watch)

    assert store.names() == []


# ---- merges and jobs ----------------------------------------------------------------------------------


def test_a_merge_into_metas_layout_has_the_tensors_of_the_other_layout(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    adapter = make_adapter(tmp_path / "adapter", seed=3)
    (tmp_path / "plain").mkdir()
    (tmp_path / "meta").mkdir()
    chosen = [("adapter", adapter, 1.0)]
    plain = merge(base, chosen, tmp_path / "plain")

    options = MergeOptions(output_format="meta", ranks=4)
    found = merge(base, chosen, tmp_path / "meta", options=options)

    report = verify_merge(found, options, WriteHooks())
    assert found.written.digests == plain.written.digests
    assert (report.passed, report.tensors, report.digests_equal) == (True, 30, 30)
    back = written(tmp_path / "meta", tmp_path / "back")
    assert_same_bits(
        load_file(back / "model.safetensors"), load_file(tmp_path / "plain" / "model.safetensors")
    )


def test_a_changed_bit_in_one_rank_does_not_pass(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    adapter = make_adapter(tmp_path / "adapter", seed=3)
    (tmp_path / "meta").mkdir()
    options = MergeOptions(output_format="meta", ranks=4)
    found = merge(base, [("adapter", adapter, 1.0)], tmp_path / "meta", options=options)
    path = tmp_path / "meta" / "consolidated.02.pth"
    header = read_torch_header(path)["layers.1.feed_forward.w2.weight"]
    data = bytearray(path.read_bytes())
    data[header.offset + 5] ^= 1
    path.write_bytes(data)

    with pytest.raises(VerificationFailed, match=r"'model\.layers\.1\.mlp\.down_proj\.weight' on the disk"):
        verify_merge(found, options, WriteHooks())


def test_a_job_publishes_an_original_checkpoint_of_the_planned_size(tmp_path: Path) -> None:
    save_base(tmp_path / "base")
    make_adapter(tmp_path / "adapter", seed=3)
    store = ModelStore(tmp_path)
    request = MergeRequest(
        kind="merge", base="base", adapters=["adapter"], target="new", output_format="meta", ranks=4
    )  # fmt: skip
    plan = preflight(request, store, {})

    result = merge_job.run(request, job_context(store.root))

    found = ranks_of(tmp_path / "new")
    assert plan.output_bytes == result.bytes_written == sum(t.nbytes for part in found for t in part.values())
    assert plan.writes is not None
    assert plan.writes.ranks == 4
    assert (result.model.kind, result.model.ranks, result.model.problems) == (
        "original",
        4,
        [],
    )
    manifest = read_manifest(tmp_path / "new")
    assert manifest is not None
    assert (manifest.kind, len(manifest.tensors)) == ("original", 30)


def test_both_layouts_of_a_model_have_the_same_tensor_digest(tmp_path: Path) -> None:
    save_original(tmp_path / "source", split_ranks(random_state(SMALL), 2), SMALL.params)
    store = ModelStore(tmp_path)
    digests = {
        convert_job.run(ConvertRequest(kind="convert", source="source", target=f"as-{layout}", output_format=layout),
                     job_context(store.root)).tensor_digest
        for layout in ("huggingface", "meta")
    }  # fmt: skip
    assert len(digests) == 1


def test_a_plan_says_what_params_cannot_say(tmp_path: Path) -> None:
    """A context of 512 positions, and the feed-forward width 140 as a computed multiple."""
    save_base(tmp_path / "base", intermediate_size=140, max_position_embeddings=512)
    request = ConvertRequest(kind="convert", source="base", target="new", output_format="meta")
    plan = preflight(request, ModelStore(tmp_path), {})
    assert any(
        "multiple_of 4 and ffn_dim_multiplier 1.1 is computed to give" in text for text in plan.warnings
    )
    assert any("512 positions" in text for text in plan.warnings)


def test_a_model_without_a_tokenizer_file_is_written_with_a_warning(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    (base / "tokenizer.model").unlink()
    request = ConvertRequest(kind="convert", source="base", target="new", output_format="meta")
    warnings = preflight(request, ModelStore(tmp_path), {}).warnings
    assert any("no tokenizer" in text for text in warnings)


def test_weights_of_several_dtypes_keep_them(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"] = tensors["model.layers.1.mlp.up_proj.weight"].double()
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})

    found = ranks_of(to_meta(base, tmp_path / "target", ranks=2))

    assert found[1]["layers.1.feed_forward.w3.weight"].dtype == torch.float64
    assert found[1]["layers.0.feed_forward.w3.weight"].dtype == torch.float16
