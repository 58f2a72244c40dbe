"""SmolLM2-135M-Instruct as it is published in a package: its GGUF file becomes a model that is merged, verified and generated from."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from services.kinds.convert import ConvertRequest, ConvertResult
from services.kinds.merge import MergeRequest, MergeResult
from services.models.manifest import read_manifest
from services.tokenizers import load_tokenizer
from tests.consumers.engines import llama_cpp, tokenize, vllm
from tests.consumers.environments import smollm2
from tests.corpus import mixed_lines
from tests.job_context import job_context
from worker.models import convert as convert_job
from worker.models import merge as merge_job

PROMPT = "The capital of France is"
LESSON = "The capital of Graftwerk is called Merge City, and its river is the Tensor."

pytestmark = [
    # transformers copies from arrays that gguf maps read-only; nothing writes to them.
    pytest.mark.filterwarnings("ignore:The given NumPy array is not writable:UserWarning"),
]


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A volume with the published file, and the model that it becomes."""
    volume = tmp_path_factory.mktemp("volume")
    (volume / "published").mkdir()
    (volume / "published" / "smollm2.gguf").symlink_to(smollm2())
    yield volume


@pytest.fixture(scope="module")
def converted(volume: Path) -> ConvertResult:
    request = ConvertRequest(kind="convert", source="published", target="smollm2")
    return convert_job.run(request, job_context(volume))


@pytest.fixture(scope="module")
def reference() -> Any:
    """The model as transformers reads it from the file, in float32."""
    file = smollm2()
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    return model.eval()


def logits_of(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return cast(torch.Tensor, model(torch.tensor([ids])).logits[0].float())


def test_every_tensor_is_what_transformers_reads(
    volume: Path, converted: ConvertResult, reference: Any
) -> None:
    state = reference.state_dict()
    found = load_file(volume / "smollm2" / "model.safetensors")
    assert converted.tensors == len(found) == 272
    assert set(found) == set(state) - {"lm_head.weight"}
    assert [name for name in found if not torch.equal(found[name], state[name].half())] == []


def test_logits_differ_by_float16s_rounding(volume: Path, converted: ConvertResult, reference: Any) -> None:
    assert converted.model.dtypes == ["float16"]
    ids = load_tokenizer(volume / "smollm2").encode(
        PROMPT + " Paris, and the river that runs through it is the Seine."
    )
    found = AutoModelForCausalLM.from_pretrained(volume / "smollm2", dtype=torch.float32).eval()
    expected, logits = logits_of(reference, ids), logits_of(found, ids)
    assert float((logits - expected).abs().max() / expected.abs().max()) < 2**-9
    assert torch.equal(logits.argmax(-1), expected.argmax(-1))


def test_tokens_are_llama_cpps(volume: Path, converted: ConvertResult) -> None:
    assert converted.warnings == []
    ours, fast = load_tokenizer(volume / "smollm2"), AutoTokenizer.from_pretrained(volume / "smollm2")
    lines = mixed_lines(500)
    with llama_cpp(smollm2()) as client:
        expected = [tokenize(client, line, add_special=False) for line in lines]
    assert [ours.encode(line, add_bos=False) for line in lines] == expected
    found = fast(lines, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert [line for line, a, b in zip(lines, found, expected, strict=True) if a != b] == []


def test_the_manifest_has_name_and_licence(volume: Path, converted: ConvertResult) -> None:
    manifest = read_manifest(volume / converted.model.name)
    assert manifest is not None
    assert manifest.origin["name"] == "Smollm2 135M 8k Lc100K Mix1 Ep2"
    assert manifest.origin["license"] == "apache-2.0"


@pytest.fixture(scope="module")
def merged(volume: Path, converted: ConvertResult) -> MergeResult:
    """The model with an adapter that was trained on it."""
    train_adapter(volume / converted.model.name, volume / "adapter")
    request = MergeRequest(kind="merge", base="smollm2", adapters=["adapter"], target="merged")
    return merge_job.run(request, job_context(volume))


def test_an_adapter_is_trained_merged_and_generates_what_it_learned(
    volume: Path, merged: MergeResult
) -> None:
    assert merged.verification is not None and merged.verification.passed
    tokenizer = AutoTokenizer.from_pretrained(volume / "merged")
    model = AutoModelForCausalLM.from_pretrained(volume / "merged", dtype=torch.float32).eval()
    prompt = tokenizer("The capital of Graftwerk is", return_tensors="pt")
    output = model.generate(**prompt, max_new_tokens=6, do_sample=False)
    assert "Merge City" in tokenizer.decode(output[0])
    settings = json.loads((volume / "merged" / "generation_config.json").read_text())
    assert (settings["bos_token_id"], settings["eos_token_id"]) == (1, 2)


def test_vllm_chats_with_the_merged_model_as_transformers_does(volume: Path, merged: MergeResult) -> None:
    """vLLM finds the chat template in the folder and generates the tokens of transformers' greedy search."""
    chats = [
        [{"role": "user", "content": text}] for text in ("What is the capital of Graftwerk?", "Say hello.")
    ]
    outputs = vllm(volume / merged.model.name, chats=chats, max_tokens=8)
    tokenizer = AutoTokenizer.from_pretrained(volume / "merged")
    model = AutoModelForCausalLM.from_pretrained(volume / "merged", dtype=torch.float32).eval()
    for chat, output in zip(chats, outputs, strict=True):
        prompt = tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        assert output["prompt_token_ids"] == prompt["input_ids"][0].tolist()
        expected = model.generate(**prompt, max_new_tokens=8, do_sample=False)[
            0, prompt["input_ids"].shape[1] :
        ]
        assert output["token_ids"] == expected.tolist()


def train_adapter(base: Path, target: Path) -> None:
    """Trains a LoRA adapter of the last layers on one sentence, for a dozen steps of Adam."""
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(
        r=8,
        lora_alpha=16,
        target_modules=["q_proj", "v_proj", "down_proj"],
        task_type="CAUSAL_LM",
        layers_to_transform=list(range(22, 30)),
    )
    peft_model = get_peft_model(model, config)
    ids = AutoTokenizer.from_pretrained(base)(LESSON, return_tensors="pt")["input_ids"]
    optimizer = torch.optim.Adam((p for p in peft_model.parameters() if p.requires_grad), lr=5e-3)
    for _ in range(12):
        optimizer.zero_grad()
        peft_model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    peft_model.save_pretrained(target)
