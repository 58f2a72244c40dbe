"""Choice of a repository's files: one format of weights and what belongs to it, or a refusal that lists what is there."""

import pytest

from services.errors import (
    GraftwerkError,
    IncompleteCheckpoint,
    InvalidName,
    InvalidRequest,
    UnsupportedFormat,
)
from services.models.hub_files import HubFile, chosen_files

SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
INDEX = "model.safetensors.index.json"
TOKENIZER = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"]


def chosen(*names: str, patterns: list[str] | None = None, **sizes: int) -> list[str]:
    files = [HubFile(name, sizes.get(name.partition(".")[0], 10), "0" * 40, is_lfs=False) for name in names]
    return [file.path for file in chosen_files("org/name", files, patterns)]


@pytest.mark.parametrize(
    ("taken", "left"),
    [
        (["config.json", "model.safetensors"], ["pytorch_model.bin", "tf_model.h5", "flax_model.msgpack"]),
        (["config.json", *SHARDS, INDEX], ["consolidated.safetensors", "params.json", "model.fp16.safetensors"]),
        (["config.json", *SHARDS, INDEX], ["original/consolidated.00.pth", "original/params.json", "onnx/model.onnx"]),
        (["config.json", "model.safetensors"], [*SHARDS, INDEX]),
        (["config.json", "pytorch_model.bin"], ["optimizer.pt", "training_args.bin", "modeling_own.py"]),
        (["config.json", "model.safetensors"], ["model-Q8_0.gguf", "metal/model.bin"]),
        (["config.json", "model.safetensors", "generation_config.json", "chat_template.jinja", *TOKENIZER], []),
        (["config.json", "model.safetensors", "README.md", "LICENSE", "NOTICE.txt"], ["sub/README.md", ".gitattributes"]),
        (["adapter_config.json", "adapter_model.safetensors", *TOKENIZER], ["adapter_model.bin", "config.json"]),
        (["adapter_config.json", "adapter_model.bin"], ["checkpoint-5/adapter_model.bin", "model.safetensors"]),
        (["m-Q4_K_M.gguf", "README.md"], ["config.json", "mmproj-m-f16.gguf"]),
        (["consolidated.00.pth", "consolidated.01.pth", "params.json", "tokenizer.model"], ["checklist.chk"]),
        (["original/consolidated.00.pth", "original/params.json", "original/tokenizer.model"], ["notes.txt"]),
        (["tokenizer.model", "tokenizer_config.json"], ["picture.png"]),
        (["config.json", "model.safetensors"], ["manifest.json"]),
    ],
)  # fmt: skip
def test_what_the_model_needs_is_taken_and_nothing_else(taken: list[str], left: list[str]) -> None:
    assert chosen(*taken, *left) == sorted(taken)


def test_a_readme_of_megabytes_is_left_out() -> None:
    names = ["config.json", "model.safetensors", "README.md"]
    assert chosen(*names, README=2**20 + 1) == ["config.json", "model.safetensors"]
    assert chosen(*names, README=2**20) == sorted(names)


@pytest.mark.parametrize(
    ("patterns", "taken"),
    [
        (["*.safetensors", "config.json"], ["config.json", "model.safetensors"]),
        (["*"], ["config.json", "model.safetensors", "onnx/model.onnx"]),
        (["onnx/", "*.json"], ["config.json", "onnx/model.onnx"]),
        (["[cm]*"], ["config.json", "model.safetensors"]),
    ],
)
def test_patterns_choose_exactly_what_they_match(patterns: list[str], taken: list[str]) -> None:
    names = ["config.json", "model.safetensors", "onnx/model.onnx", ".gitattributes", "manifest.json"]
    assert chosen(*names, patterns=patterns) == taken


def test_one_gguf_is_chosen_by_its_name() -> None:
    ggufs = ["m-Q4_K_M.gguf", "m-Q8_0.gguf"]
    assert chosen(*ggufs, "config.json", patterns=["*Q8_0*"]) == ["m-Q8_0.gguf"]
    for patterns in (None, ["*.gguf"]):
        with pytest.raises(
            InvalidRequest, match=r"2 GGUF files to choose from: m-Q4_K_M\.gguf, m-Q8_0\.gguf"
        ) as found:
            chosen(*ggufs, patterns=patterns)
        assert found.value.hint == 'Name one of them: "files": ["m-Q4_K_M.gguf"].'


@pytest.mark.parametrize(
    ("names", "patterns", "error", "message"),
    [
        (["config.json", SHARDS[0], INDEX], None, IncompleteCheckpoint, "1 of 2 shards"),
        (["config.json", *SHARDS], None, IncompleteCheckpoint, "no model.safetensors.index.json"),
        (["adapter_config.json"], None, IncompleteCheckpoint, "no adapter_model.safetensors or adapter_model.bin"),
        (["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"], None, UnsupportedFormat, "one part of a GGUF"),
        (["README.md", "data.csv"], None, UnsupportedFormat, "it holds README.md, data.csv"),
        (["config.json", "unet.safetensors"], None, UnsupportedFormat, "no files would be taken"),
        (["config.json", "model.safetensors"], ["*.gguf"], InvalidRequest, r"matches '\*\.gguf'; it holds config"),
        (["config.json", "model.safetensors"], ["model*"], UnsupportedFormat, "model.safetensors would be taken"),
        (["config.json", "Config.json"], ["*"], InvalidName, "differ in case alone"),
        ([], None, UnsupportedFormat, "it holds no files"),
    ],
)  # fmt: skip
def test_refused_with_what_is_there(
    names: list[str], patterns: list[str] | None, error: type[GraftwerkError], message: str
) -> None:
    with pytest.raises(error, match=message):
        chosen(*names, patterns=patterns)
