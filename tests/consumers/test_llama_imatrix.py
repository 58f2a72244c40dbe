"""Our importance matrices and what is encoded with them, against llama-imatrix and llama-quantize of the same model."""

import random
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader

from services.kinds.convert import ConvertRequest
from services.verify import importance
from tests.consumers.environments import llama_quantize
from tests.job_context import job_context
from tests.reference.families import save_tiny
from worker.models import convert as convert_job

WIDE = {
    "hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "head_dim": 64, "max_position_embeddings": 1024,
}  # fmt: skip
"""Rows of whole blocks of 256, and a context of more than a chunk."""

WORDS = ("the", "and", "in", "land", "end", "of", "then", "an", "other", "thing", "brother", "weather")

MIXES = ("q4_0", "q2_k_s", "q4_k_m", "q6_k", "iq2_xs", "iq3_xxs", "iq4_xs")


def convert(root: Path, target: str, dtype: str, **options: Any) -> Path:
    request = {
        "kind": "convert",
        "source": "base",
        "target": target,
        "output_format": "gguf",
        "dtype": dtype,
        **options,
    }
    convert_job.run(ConvertRequest.model_validate(request), job_context(root))
    return root / target / "model.gguf"


def run(program: str, *arguments: object) -> None:
    command = [llama_quantize().with_name(program), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A volume with a random model, its file in float32, a text and llama-imatrix's matrix of it."""
    found = tmp_path_factory.mktemp("volume")
    save_tiny("qwen3", found / "base", **WIDE)
    (found / "incoming").mkdir()
    words = random.Random(1)
    text = found / "incoming" / "text.txt"
    text.write_text(" ".join(words.choice(WORDS) for _ in range(4000)))
    source = convert(found, "f32", "float32")
    run(
        "llama-imatrix",
        "-m",
        source,
        "-f",
        text,
        "-o",
        found / "incoming/m.gguf",
        "-c",
        512,
        "-t",
        2,
        "--no-ppl",
    )
    return found


def test_the_matrix_is_llama_imatrixs(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours: dict[str, Any] = {}
    monkeypatch.setattr(importance, "check_importance", lambda _, matrix, row: ours.setdefault(matrix, row))
    convert(root, "computed", "q4_0", imatrix={"text_file": "incoming/text.txt"})
    theirs = {tensor.name: tensor.data.ravel() for tensor in GGUFReader(root / "incoming/m.gguf").tensors}
    assert {name.removesuffix(".in_sum2") for name in theirs if name.endswith(".in_sum2")} == set(ours)
    for matrix, row in ours.items():
        mean = theirs[f"{matrix}.in_sum2"] / theirs[f"{matrix}.counts"]
        np.testing.assert_allclose(row, mean, rtol=1e-2, err_msg=matrix)


@pytest.mark.parametrize("mix", MIXES)
def test_encodings_and_bytes_are_llama_quantizes(root: Path, mix: str) -> None:
    matrix, theirs = root / "incoming/m.gguf", root / f"{mix}.gguf"
    ours = convert(root, mix, mix, imatrix={"file": "incoming/m.gguf"})
    run("llama-quantize", "--imatrix", matrix, root / "f32/model.gguf", theirs, mix, 2)
    found, expected = ({t.name: t for t in GGUFReader(file).tensors} for file in (ours, theirs))
    assert {name: t.tensor_type for name, t in found.items()} == {
        n: t.tensor_type for n, t in expected.items()
    }
    assert [name for name in found if not np.array_equal(found[name].data, expected[name].data)] == []
    keys = [f"quantize.imatrix.{key}" for key in ("entries_count", "chunks_count", "dataset", "file")]
    values = [[GGUFReader(file).fields[key].contents() for key in keys] for file in (ours, theirs)]
    assert values[0][:3] == values[1][:3]
    assert values[0][3] == "incoming/m.gguf"
