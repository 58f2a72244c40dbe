"""`llm`, the command: one answer, a stream, a schema, a conversation that goes on."""

import json
from pathlib import Path

from tests.clients.conftest import MODEL, NEW_TOKENS, QUESTION, Reference, Service, output_of
from tests.clients.environments import program_of

SCHEMA = {
    "type": "object", "additionalProperties": False, "required": ["city"],
    "properties": {"city": {"type": "string", "maxLength": 20}},
}  # fmt: skip


def test_the_command_is_answered(service: Service, reference: Reference, tmp_path: Path) -> None:
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- {{model_id: graftwerk, model_name: {MODEL}, api_base: {service.url}/v1, supports_schema: true, supports_tools: true}}\n"
    )
    variables = {"LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "none"}

    def ask(question: str, *options: str, tokens: int = NEW_TOKENS) -> str:
        greedy = ("-o", "temperature", "0", "-o", "max_tokens", str(tokens))
        command = [program_of("llm", "llm"), "-m", "graftwerk", *greedy, *options, question]
        return output_of(command, home=tmp_path, variables=variables).removesuffix("\n")

    assert ask(QUESTION) == reference.answer
    assert ask(QUESTION, "--no-stream") == reference.answer
    assert ask(QUESTION, "--tool", "llm_version") == reference.answer
    assert json.loads(ask(QUESTION, "--schema", json.dumps(SCHEMA), tokens=64)).keys() == {"city"}
    ask(QUESTION)
    ask("And of Italy?", "--continue")
    (job,) = service.last_jobs(1)
    turns = [(message["role"], message["content"]) for message in job["request"]["messages"]]
    assert turns == [("user", QUESTION), ("assistant", reference.answer), ("user", "And of Italy?")]
