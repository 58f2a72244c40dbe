"""Files of Meta's layout: their bytes, their sizes in memory, and params.json."""

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

from services.architectures.checkpoint_reader import read_checkpoint
from services.checkpoints import torch_file
from services.checkpoints.torch_file import TorchFile
from services.checkpoints.write_ledger import TensorPlan
from services.convert import ConvertOptions, convert
from services.files.torch_zip import read_torch_header
from tests.contract.meta_models import (
    assert_same_bits,
    ranks_of,
    save_base,
    to_meta,
    without_frequencies,
)
from tests.reference.make_original import SMALL, random_state, save_original

# ---- the files ----


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


# ---- params.json ----


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
