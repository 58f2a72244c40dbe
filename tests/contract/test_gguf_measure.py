"""Loss of a GGUF output against its source, against the same figures by transformers, gguf's decoder and torch."""

from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from pydantic import ValidationError

from services.errors import InvalidRequest
from services.kinds.convert import ConvertRequest
from services.tokenizers import load_tokenizer
from tests.contract.gguf_models import tensors_of
from tests.job_context import job_context
from tests.reference.families import save_tiny
from worker.models import convert as convert_job

TEXT = "the and in the, and then the end of the land; " * 60

WIDE = {"hidden_size": 64, "intermediate_size": 96}
"""Rows of whole blocks of 32."""


def request_of(**options: Any) -> ConvertRequest:
    values = {"dtype": "q4_0", "measure": {"text_file": "incoming/text.txt"}, **options}
    return ConvertRequest.model_validate(
        {"kind": "convert", "source": "base", "target": "new", "output_format": "gguf", **values}
    )


def rounded(model: Any, folder: Path) -> None:
    """Puts the values of the file into the model; the rows of this family keep their order."""
    found = tensors_of(folder)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, model.config.num_hidden_layers)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            tensor = found[str(names.get_name(name, (".weight",)))]
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            parameter.copy_(torch.from_numpy(values.copy()))


def test_the_figures_are_those_of_both_models_probabilities(tmp_path: Path) -> None:
    model = save_tiny("qwen3", tmp_path / "base", dtype=torch.float32, **WIDE)
    (tmp_path / "incoming").mkdir()
    (tmp_path / "incoming" / "text.txt").write_text(TEXT)

    result = convert_job.run(request_of(), job_context(tmp_path))

    ids = torch.tensor(load_tokenizer(tmp_path / "base").encode(TEXT)[: 64 * 16]).view(16, 64)
    with torch.no_grad():
        source = model(ids).logits
        rounded(model, tmp_path / "new")
        output = model(ids).logits
    divergence = torch.nn.functional.kl_div(
        output.log_softmax(-1), source.log_softmax(-1), reduction="none", log_target=True
    ).sum(-1)
    assert float(divergence.mean()) > 1e-3
    assert result.kl_divergence == pytest.approx(float(divergence.mean()), rel=1e-3)
    same = (source.argmax(-1) == output.argmax(-1)).double().mean()
    assert result.same_top_token == pytest.approx(float(same), abs=2e-3)
    assert float(same) < 1


def test_an_exact_output_has_no_loss_and_a_new_text_is_measured_again(tmp_path: Path) -> None:
    save_tiny("qwen3", tmp_path / "base", dtype=torch.float32)
    (tmp_path / "incoming").mkdir()
    (tmp_path / "incoming" / "text.txt").write_text(TEXT)
    first = convert_job.run(request_of(dtype=None), job_context(tmp_path))
    assert first.kl_divergence == pytest.approx(0, abs=1e-9)
    assert first.same_top_token == 1
    (tmp_path / "incoming" / "text.txt").write_text(TEXT[::-1])
    again = convert_job.run(request_of(dtype=None, target="again"), job_context(tmp_path))
    assert again.same_as is None
    same = convert_job.run(request_of(dtype=None, target="same"), job_context(tmp_path))
    assert same.same_as == "again"


def test_a_text_of_less_than_a_window_is_refused_and_publishes_nothing(tmp_path: Path) -> None:
    save_tiny("qwen3", tmp_path / "base", dtype=torch.float32)
    (tmp_path / "incoming").mkdir()
    (tmp_path / "incoming" / "text.txt").write_text("the and in")
    with pytest.raises(InvalidRequest, match="at least 64 are needed"):
        convert_job.run(request_of(dtype=None), job_context(tmp_path))
    assert not (tmp_path / "new").exists()


def test_measure_applies_to_gguf_only() -> None:
    with pytest.raises(ValidationError, match="measure applies to output_format 'gguf' only"):
        request_of(output_format="huggingface", dtype=None)
