"""Models that Meta's layout cannot hold, and conversions that are canceled."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from services.checkpoints.write_hooks import WriteHooks
from services.convert import ConvertOptions, convert
from services.errors import (
    GraftwerkError,
    JobCanceled,
    UnsupportedFormat,
    UnsupportedOption,
    VocabularyMismatch,
)
from services.kinds.convert import ConvertRequest
from services.models.store import ModelStore
from services.preflight import preflight
from tests.contract.meta_models import (
    save_base,
)
from tests.reference.make_original import SMALL, random_state, save_original
from tests.reference.tokenizer_files import piece_names, sentencepiece_file


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
