"""A repository of the test hub: a model in several formats. An import takes one of them."""

import json
import random

SIZE = 2 * 2**20
WEIGHTS = random.Random(3).randbytes(SIZE)
CONFIG = json.dumps({"model_type": "llama"}).encode()
FILES = {
    "config.json": CONFIG, "model.safetensors": WEIGHTS, "README.md": b"# A model\n", "tokenizer.json": b"{}",
    "pytorch_model.bin": b"the same weights", "onnx/model.onnx": b"the same weights", "original/params.json": b"{}",
}  # fmt: skip
FETCHED = {"config.json", "model.safetensors", "README.md", "tokenizer.json"}
