"""Descriptions of the prompt templates."""

from pathlib import Path

import pytest

from services.templates import TEMPLATES
from tests.api_client import client_of

pytestmark = pytest.mark.disable_socket


def test_every_template_is_described_with_an_example(tmp_path: Path) -> None:
    found = client_of(tmp_path).get("/api/templates").get_json()["templates"]
    by_name = {entry["name"]: entry for entry in found}
    assert [entry["name"] for entry in found] == ["model", *TEMPLATES]
    assert all(entry["description"].endswith(".") for entry in found)
    assert by_name["model"]["example"] is None
    assert by_name["raw"] | {"description": ""} == {
        "name": "raw", "description": "", "default_system": None, "example": "What is grafting?", "stop": [],
    }  # fmt: skip
    assert by_name["vicuna"]["example"] == (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
        "and polite answers to the user's questions. USER: What is grafting? ASSISTANT:"
    )
    assert by_name["chatml"]["example"] == (
        "<|im_start|>user\nWhat is grafting?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert by_name["chatml"]["default_system"] == ""
    assert by_name["alpaca-2"]["default_system"].endswith("你是一个乐于助人的助手。")
    assert by_name["alpaca-2"]["example"].startswith("[INST] <<SYS>>\nYou are a helpful assistant.")
    assert by_name["llama-3"]["stop"] == ["<|eot_id|>", "<|eom_id|>"]
