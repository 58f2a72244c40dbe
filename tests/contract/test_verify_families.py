"""Forward passes of verification against transformers' own, for a tiny random model of each family."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from services.architectures.checkpoint_reader import read_checkpoint
from services.architectures.output_spec import plan_output
from services.checkpoints.readback import read_stored
from services.checkpoints.tensor_reader import TensorReader
from services.checkpoints.write_hooks import WriteHooks
from services.progress import Progress
from services.verify.forward_pass import forward_logits, text_model
from services.verify.rounded import RoundedMerge
from services.verify.weights import ExpectedWeights, ModelWeights, StoredWeights
from tests.reference.families import OPTIONS, save_tiny

IDS = torch.tensor(
    [[7, 199, 3, 3, 250, 81, 7, 40, 120, 5, 298, 17, 1, 66, 0, 92, 3, 11, 222, 54, 140, 9, 260, 31]] * 2
)
IDS[1] = (IDS[0] * 7 + 11) % 300


DENSE = sorted(set(OPTIONS) - {"mixtral", "qwen3_moe"})
"""Types whose logits are compared."""


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("model_type", DENSE)
def test_the_logits_are_those_of_transformers(model_type: str, tied: bool, tmp_path: Path) -> None:
    """24 tokens, so that the window of 16 counts; both sides read the same files."""
    save_tiny(model_type, tmp_path, tied=tied)
    base = read_checkpoint(tmp_path)
    assert (base.head is None) == tied
    stored = read_stored(
        tmp_path, plan_output("huggingface", base.config, base.stored, vocabulary=base.vocabulary)
    )
    stages: list[Progress] = []
    with TensorReader() as reader:
        sides: list[ModelWeights] = [
            StoredWeights(reader, stored),
            ExpectedWeights(reader, RoundedMerge(base=base, dtypes={})),
        ]
        text = text_model(base.config, base.tensors, 300)
        found = forward_logits(sides, text, IDS, WriteHooks(report=stages.append))
    assert torch.equal(found[0], found[1])
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        expected = model(input_ids=IDS).logits
    assert float(expected.std()) > 0.1
    assert torch.allclose(found[0], expected, atol=1e-4, rtol=1e-4)
    assert stages[-1].total == 4
