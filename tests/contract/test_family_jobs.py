"""Jobs on models of other families than LLaMA: a merge is planned, verified and described."""

from pathlib import Path

import pytest

from services.errors import UnsupportedFormat
from services.kinds.merge import MergeRequest
from services.kinds.verify import VerifyRequest
from services.models.store import ModelStore
from services.models.summary import describe_folder
from services.preflight import preflight
from tests.job_context import job_context
from tests.reference.families import VOCABULARY, save_tiny, save_tiny_adapter
from worker.lifecycle import result_as_json
from worker.models import merge as merge_job
from worker.models import verify as verify_job

REQUEST = MergeRequest(kind="merge", base="base", adapters=["a"], target="merged")  # type: ignore[list-item]


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
def test_a_merge_that_unties_a_multimodal_model_is_published_and_verified(tmp_path: Path) -> None:
    model = save_tiny("gemma3", tmp_path / "base")
    save_tiny_adapter(tmp_path / "a", model, modules_to_save=["lm_head"])

    plan = preflight(REQUEST, ModelStore(tmp_path), ())
    result = result_as_json(merge_job.run(REQUEST, job_context(tmp_path)))

    tensors = len(model.state_dict())  # which lists a tied head too
    assert plan.writes is not None
    assert (plan.writes.tensors, result["tensors"]) == (tensors, tensors)
    assert plan.output_bytes == result["bytes_written"]
    assert result["verification"]["logits"]["passed"]
    assert describe_folder(tmp_path / "merged", "merged").problems == []
    again = VerifyRequest(kind="verify", model="merged", base="base", adapters=["a"])  # type: ignore[list-item]
    assert verify_job.run(again, job_context(tmp_path)).passed
    assert result["vocabulary_size"] == VOCABULARY


def test_a_base_of_an_unknown_family_is_refused_before_the_job(tmp_path: Path) -> None:
    model = save_tiny("qwen2", tmp_path / "base")
    save_tiny_adapter(tmp_path / "a", model)
    path = tmp_path / "base" / "config.json"
    path.write_text(path.read_text().replace('"model_type": "qwen2"', '"model_type": "mamba"'))

    with pytest.raises(UnsupportedFormat, match="'mamba'; supported are llama, mistral"):
        preflight(REQUEST, ModelStore(tmp_path), ())
