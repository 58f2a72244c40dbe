"""Texts of a model card by kind of model: how it is loaded, and how its digests are checked without Graftwerk."""

from collections.abc import Mapping

_TRANSFORMERS = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "path/to/this/folder"
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
inputs = tokenizer("Hello", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=40)[0]))
```

If the folder has a chat template, `tokenizer.apply_chat_template` writes conversations in it. vLLM serves the folder as it is."""

_LLAMA_CPP = """\
```sh
llama-server -m model.gguf
ollama create my-model -f Modelfile
```

Give them the path of the `.gguf` file or the `Modelfile` of this folder."""

_PEFT = """\
```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained("path/or/id/of/the/base", dtype="auto")
model = PeftModel.from_pretrained(base, "path/to/this/folder")
```"""

_TOKENIZER = """\
```python
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
```

`tokenizer.model` is the SentencePiece model itself."""

_META = "The folder has Meta's layout: one `consolidated.NN.pth` a rank and `params.json`, read by Meta's own code."

LOADING: Mapping[str, str] = {
    "huggingface": _TRANSFORMERS, "gguf": _LLAMA_CPP, "adapter": _PEFT, "tokenizer": _TOKENIZER, "original": _META,
}  # fmt: skip

_FILES = """\
import hashlib, json, pathlib

manifest = json.loads(pathlib.Path("manifest.json").read_text(encoding="utf-8"))
wanted = {**manifest["files"], **{name: entry["sha256"] for name, entry in manifest["tensors"].items()}}
files = [pathlib.Path(name) for name in manifest["files"]]
found = {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files if path.is_file()}
"""

_RESULT = """\
different = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
print("equal" if not different else different)
```"""

_SAFETENSORS = """\
for path in pathlib.Path().glob("*.safetensors"):
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header.pop("__metadata__", None)
        for name, tensor in header.items():
            begin, end = tensor["data_offsets"]
            file.seek(8 + size + begin)
            found[name] = hashlib.sha256(file.read(end - begin)).hexdigest()
"""

_GGUF = """\
import gguf

for path in pathlib.Path().glob("*.gguf"):
    for tensor in gguf.GGUFReader(path).tensors:
        found[tensor.name] = hashlib.sha256(tensor.data.tobytes()).hexdigest()
"""

_INTRODUCTION = """\
`manifest.json` has the SHA-256 of each tensor's bytes and of each other file. Run this in the folder; it needs {needs}:

```python
"""


def _script(needs: str, tensors: str = "") -> str:
    return _INTRODUCTION.format(needs=needs) + _FILES + tensors + _RESULT


CHECKS: Mapping[str, str] = {
    "huggingface": _script("Python alone", _SAFETENSORS), "adapter": _script("Python alone", _SAFETENSORS),
    "gguf": _script("the package `gguf`", _GGUF), "tokenizer": _script("Python alone"),
    "original": (
        "`manifest.json` has the SHA-256 of each tensor, joined over the ranks and named as in Hugging Face's layout, and of "
        "each other file. A conversion to `huggingface` in the same dtype has the same digests."
    ),
}  # fmt: skip
