"""The commands: the request that each makes of its options, its output and its exit code."""

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from graftwerk.commands import app
from graftwerk.text_input import cleaned
from typer.testing import CliRunner, Result

ID = "11111111-2222-3333-4444-555555555555"


class Service:
    """Stands in for the API: remembers requests, answers each job with one ending."""

    def __init__(self) -> None:
        self.status = "succeeded"
        self.result: dict[str, Any] = {"name": "ab", "size_bytes": 1234567}
        self.error: dict[str, str] | None = None
        self.refusal: httpx.Response | None = None
        self.pieces: list[dict[str, Any]] = []
        self.seen: list[httpx.Request] = []

    def job(self, status: str) -> dict[str, Any]:
        ended = status in ("succeeded", "failed", "canceled")
        request = self.body if self.seen and self.seen[0].content else {"target": "ab"}
        outcome = {"result": self.result if status == "succeeded" else None, "error": self.error}
        return {"id": ID, "kind": request.get("kind", "merge"), "status": status, "request": request} | (
            outcome if ended else {}
        )

    @property
    def body(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self.seen[0].content)
        return content

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.seen.append(request)
        if self.refusal is not None:
            return self.refusal
        if request.url.path.startswith("/api/models"):
            return self.of_models(request)
        return self.of_jobs(request)

    def of_models(self, request: httpx.Request) -> httpx.Response:
        if request.method == "DELETE":
            return httpx.Response(204)
        one = {"name": "ab", "kind": "adapter", "size_bytes": 5000, "lineage": {"base": "a"}}
        return httpx.Response(200, json={"models": [one]} if request.url.path == "/api/models" else one)

    def of_jobs(self, request: httpx.Request) -> httpx.Response:
        if request.url.params.get("dry_run"):
            return httpx.Response(
                200, json={"output_bytes": 2000000, "warnings": ["the disk is nearly full"]}
            )
        match request.url.path.rpartition("/")[2], request.method:
            case "events", _:
                ended = json.dumps(self.job(self.status))
                told = "".join(f"event: token\ndata: {json.dumps(piece)}\n\n" for piece in self.pieces)
                return httpx.Response(200, text=f"{told}event: status\ndata: {ended}\n\n")
            case "log" | "results", _:
                found = request.url.params.get("format")
                return httpx.Response(200, text=f"{found} of it" if found else "reading\nwriting\n")
            case "jobs", "GET":
                return httpx.Response(200, json={"jobs": [self.job("running")], "next": None})
            case "cancel", _:
                return httpx.Response(202, json=self.job("canceled"))
        return httpx.Response(202, json=self.job("queued"))


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Service:
    service = Service()
    monkeypatch.setattr(httpx, "HTTPTransport", lambda **_: httpx.MockTransport(service))
    for name in ("GRAFTWERK_URL", "GRAFTWERK_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    return service


Run = Callable[..., Result]


@pytest.fixture
def run(service: Service) -> Run:
    return lambda *arguments, **more: CliRunner().invoke(app, arguments, **more)


def test_import_takes_a_path_of_the_volume(service: Service, run: Run) -> None:
    assert run("import", "incoming/llama", "--target", "llama", "--sha256", "7B/a=b.pth=ff").exit_code == 0
    assert service.body == {
        "kind": "import",
        "source": {"path": "incoming/llama"},
        "target": "llama",
        "sha256": {"7B/a=b.pth": "ff"},
    }


@pytest.mark.parametrize("arguments", [["incoming/x.ZIP"], ["incoming/x.bin", "--zip"]])
def test_import_knows_a_zip_by_its_ending_or_by_the_option(
    service: Service, run: Run, arguments: list[str]
) -> None:
    run("import", *arguments, "-t", "x")
    assert service.body["source"] == {"zip": arguments[0]}


def test_convert_sends_only_what_was_given(service: Service, run: Run) -> None:
    run("convert", "a", "b")
    assert service.body == {"kind": "convert", "source": "a", "target": "b"}


def test_convert_sends_its_options(service: Service, run: Run) -> None:
    options = [
        "--output-format",
        "meta",
        "--dtype",
        "float16",
        "--max-shard-size",
        "2GB",
        "--ranks",
        "2",
        "--instruct",
    ]
    run("convert", "a", "b", *options)
    rest = {
        "output_format": "meta",
        "dtype": "float16",
        "max_shard_size": "2GB",
        "ranks": 2,
        "instruct": True,
    }
    assert service.body == {"kind": "convert", "source": "a", "target": "b"} | rest


def test_merge_keeps_the_order_of_adapters_however_they_are_written(service: Service, run: Run) -> None:
    run(
        "merge",
        "base",
        "--adapters",
        "a, b@0.5",
        "-a",
        "c",
        "--target",
        "abc",
        "--rounding",
        "once",
        "--no-verify",
    )
    assert service.body == {
        "kind": "merge",
        "base": "base",
        "adapters": ["a", {"name": "b", "scale": 0.5}, "c"],
        "target": "abc",
        "rounding": "once",
        "verify": False,
    }


@pytest.mark.parametrize(("options", "sent"), [([], {}), (["--pad-token", "[PAD]"], {"pad_token": "[PAD]"})])
def test_extend_tokenizer_sends_the_padding_token_where_there_is_one(
    service: Service, run: Run, options: list[str], sent: dict[str, str]
) -> None:
    run("extend-tokenizer", "llama", "zh", "-t", "x", *options)
    names = {"kind": "extend-tokenizer", "base": "llama", "addition": "zh", "target": "x"}
    assert service.body == names | sent


def test_a_scale_that_is_no_number_is_a_usage_error(service: Service, run: Run) -> None:
    result = run("merge", "base", "-a", "b@half", "-t", "x")
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [
        "error: 'b@half' has no scale that is a number",
        "       Write it as b@0.5.",
    ]
    assert service.seen == []


def test_generate_sends_prompts_wording_and_sampling(service: Service, run: Run) -> None:
    service.result = {"outputs": [{"prompt": "一", "text": "甲"}, {"prompt": "二", "text": "乙"}]}
    options = [
        "--template",
        "alpaca",
        "--system",
        "s",
        "--input",
        "i",
        "--greedy",
        "--seed",
        "0",
        "--stop",
        "x",
        "--stop",
        "y",
        "--max-new-tokens",
        "5",
    ]
    result = run("generate", "m", "-p", "一", "--prompt", "二", "-a", "p,q", *options)
    assert service.body == {
        "kind": "generate",
        "model": "m",
        "adapters": ["p", "q"],
        "prompts": ["一", "二"],
        "template": "alpaca",
        "system": "s",
        "input": "i",
        "sampling": {"do_sample": False, "seed": 0, "stop": ["x", "y"], "max_new_tokens": 5},
    }
    assert result.stdout == "一\n甲\n二\n乙\n"


def test_generate_reads_its_prompt_from_stdin_and_prints_the_text_alone(service: Service, run: Run) -> None:
    service.result = {"outputs": [{"prompt": "p", "text": "[red]" + "long " * 100}]}
    result = run("generate", "m", input="two\nlines\n")
    assert service.body == {"kind": "generate", "model": "m", "prompt": "two\nlines"}
    assert result.stdout == "[red]" + "long " * 100 + "\n"


def test_generate_reads_a_file_of_prompts(service: Service, run: Run, tmp_path: Any) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("one\n\n二\n", encoding="utf-8")
    run("generate", "m", "--prompts-file", str(file))
    assert service.body["prompts"] == ["one", "二"]


def test_a_file_that_is_not_utf_8_is_a_usage_error(service: Service, run: Run, tmp_path: Any) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes("中文".encode("gbk"))
    result = run("generate", "m", "--prompts-file", str(file))
    assert result.exit_code == 2
    assert "is not UTF-8" in result.stderr


def test_a_prompts_file_on_the_volume_is_left_to_the_service(service: Service, run: Run) -> None:
    run("generate", "m", "--prompts-file", "incoming/questions.json")
    assert service.body["prompts_file"] == "incoming/questions.json"


@pytest.mark.parametrize(("name", "written"), [("a.json", "predictions of it"), ("a.jsonl", "lines of it")])
def test_the_answers_to_a_file_on_the_volume_are_saved(
    service: Service, run: Run, tmp_path: Any, name: str, written: str
) -> None:
    service.result = {"results_file": "results/x.jsonl", "answered": 4000, "outputs": [{"text": "not shown"}]}
    result = run("generate", "m", "--prompts-file", "incoming/q.txt", "--output", str(tmp_path / name))
    assert result.exit_code == 0
    assert (tmp_path / name).read_text() == written
    assert "4,000" in result.stdout
    assert "not shown" not in result.stdout


def test_the_answers_to_prompts_of_ones_own_are_saved_in_the_same_shape(
    service: Service, run: Run, tmp_path: Any
) -> None:
    failed = {"prompt": "二", "error": {"code": "c", "message": "too long", "hint": "h"}}
    service.result = {"outputs": [{"prompt": "一", "text": "甲"}, failed]}
    result = run("generate", "m", "-p", "一", "-p", "二", "-o", str(tmp_path / "a.json"))
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == [
        {"Input": "一", "Output": "甲"},
        {"Input": "二", "Output": None},
    ]
    assert "too long" in result.stdout


@pytest.mark.parametrize(
    "options",
    [
        ["-p", "x", "-o", "a.jsonl"],
        ["-p", "x", "-o", "missing/a.json"],
        ["-p", "x", "-o", "a.json", "--no-wait"],
    ],
)
def test_an_output_that_could_not_be_written_is_a_usage_error(
    service: Service, run: Run, options: list[str]
) -> None:
    assert run("generate", "m", *options).exit_code == 2
    assert service.seen == []


def test_a_local_file_of_json_is_a_usage_error(service: Service, run: Run, tmp_path: Any) -> None:
    (tmp_path / "q.jsonl").write_text('{"prompt": "a"}')
    result = run("generate", "m", "--prompts-file", str(tmp_path / "q.jsonl"))
    assert result.exit_code == 2
    assert "incoming/" in result.stderr


def test_generate_without_any_prompt_is_a_usage_error(service: Service, run: Run) -> None:
    assert run("generate", "m", input="").exit_code == 2
    assert service.seen == []


def test_compare_sends_its_variants_and_shows_where_they_part(service: Service, run: Run) -> None:
    output = {"prompt": "p", "text": "甲乙"}
    service.result = {
        "seed": 3,
        "variants": [{"label": "base"}, {"label": "b+zh"}],
        "comparisons": [
            {
                "prompt": "p",
                "outputs": [output, output | {"text": "甲丙"}],
                "differences": [{"variants": ["base", "b+zh"], "token": 2, "character": 1}],
            }
        ],
        "pairs": [{"variants": ["base", "b+zh"], "equal": 0, "compared": 1}],
    }
    options = ["-p", "p", "--quantization", "8bit", "--seed", "3", "--template", "alpaca"]
    result = run("compare", "base=b", "b+zh@0.5+al", *options)
    assert service.body == {
        "kind": "compare",
        "variants": [
            {"label": "base", "model": "b", "quantization": "8bit"},
            {"model": "b", "adapters": [{"name": "zh", "scale": 0.5}, "al"], "quantization": "8bit"},
        ],
        "template": "alpaca",
        "sampling": {"seed": 3},
        "prompt": "p",
    }
    assert result.stdout.splitlines() == [
        "p",
        "base:",
        "甲乙",
        "b+zh:",
        "甲丙",
        "base ≠ b+zh from token 2, character 1 on",
        "base and b+zh: 0 of 1 answers equal",
        "seed 3",
    ]


def test_perplexity_sends_a_local_text_and_its_options(service: Service, run: Run, tmp_path: Any) -> None:
    file = tmp_path / "text.txt"
    file.write_text("one\n二\n", encoding="utf-8")
    service.result = {"perplexity": 12.5, "tokens": 7}
    options = ["-a", "p,q@0.5", "--context", "512", "--stride", "256", "--rope-alpha", "2"]
    result = run("perplexity", "m", "--file", str(file), *options)
    assert service.body == {
        "kind": "perplexity",
        "model": "m",
        "adapters": ["p", {"name": "q", "scale": 0.5}],
        "context": 512,
        "stride": 256,
        "rope_alpha": 2.0,
        "text": "one\n二\n",
    }
    assert "12.5" in result.stdout


def test_perplexity_leaves_a_file_of_the_volume_to_the_service(service: Service, run: Run) -> None:
    run("perplexity", "m", "--file", "incoming/text.txt")
    assert service.body == {"kind": "perplexity", "model": "m", "text_file": "incoming/text.txt"}


def test_a_text_too_long_to_send_is_a_usage_error(service: Service, run: Run, tmp_path: Any) -> None:
    file = tmp_path / "text.txt"
    file.write_text("a" * 1_000_001, encoding="utf-8")
    result = run("perplexity", "m", "--file", str(file))
    assert result.exit_code == 2
    assert "incoming/" in result.stderr
    assert service.seen == []


def test_a_job_waits_for_the_jobs_named(service: Service, run: Run) -> None:
    run("convert", "a", "b", "--after", "j1", "--after", "j2")
    assert service.body["after"] == ["j1", "j2"]


def test_no_wait_prints_the_id_and_does_not_follow(service: Service, run: Run) -> None:
    result = run("convert", "a", "b", "--no-wait")
    assert (result.exit_code, result.stdout, len(service.seen)) == (0, f"{ID}\n", 1)


def test_json_prints_the_ended_job_and_nothing_else(run: Run) -> None:
    job = json.loads(run("convert", "a", "b", "--json").stdout)
    assert (job["id"], job["status"], job["result"]["name"]) == (ID, "succeeded", "ab")


def test_a_dry_run_prints_the_plan_and_its_warnings(run: Run) -> None:
    result = run("convert", "a", "b", "--dry-run")
    assert result.exit_code == 0
    assert "2.0 MB" in result.stdout
    assert "warning: the disk is nearly full" in result.stdout
    assert json.loads(run("convert", "a", "b", "--dry-run", "--json").stdout)["output_bytes"] == 2000000


def test_a_failed_job_ends_with_1_and_two_lines(service: Service, run: Run) -> None:
    service.status = "failed"
    service.error = {"code": "disk_full", "message": "3 GB are missing", "hint": "delete a model"}
    result = run("convert", "a", "b")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-2:] == ["error: 3 GB are missing [disk_full]", "       delete a model"]


def test_a_canceled_job_ends_with_130(service: Service, run: Run) -> None:
    service.status = "canceled"
    assert run("convert", "a", "b").exit_code == 130


def test_a_refusal_ends_with_3_and_two_lines(service: Service, run: Run) -> None:
    problem = {"code": "model_not_found", "detail": "no model [a]", "hint": "import it"}
    service.refusal = httpx.Response(404, json=problem)
    result = run("convert", "a", "b")
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr.splitlines() == ["error: no model [a]", "       import it"]


def test_a_missing_service_ends_with_4(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    monkeypatch.setattr(httpx, "HTTPTransport", lambda **_: httpx.MockTransport(refuse))
    assert run("models").exit_code == 4


@pytest.mark.parametrize("url", ["nonsense", "http://[", "ftp://x"])
def test_a_url_that_is_none_ends_with_4_and_no_traceback(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    result = CliRunner().invoke(app, ["models", "--url", url])
    assert result.exit_code == 4
    assert result.stderr.startswith("error: ")


def test_the_url_and_the_key_come_from_the_environment(service: Service, run: Run) -> None:
    run("models", env={"GRAFTWERK_URL": "http://elsewhere.test:1", "GRAFTWERK_API_KEY": "k"})
    assert str(service.seen[0].url) == "http://elsewhere.test:1/api/models"
    assert service.seen[0].headers["Authorization"] == "Bearer k"


def test_ctrl_c_without_a_terminal_leaves_the_job_running(
    monkeypatch: pytest.MonkeyPatch, service: Service, run: Run
) -> None:
    def interrupted(*_: object) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("graftwerk.http.Graftwerk.follow", interrupted)
    result = run("convert", "a", "b")
    assert result.exit_code == 130
    assert f"detached: the job goes on, see `graftwerk jobs watch {ID}`" in result.stderr
    assert [request.url.path for request in service.seen] == ["/api/jobs"]


def test_ctrl_c_on_a_terminal_cancels_when_told_to(
    monkeypatch: pytest.MonkeyPatch, service: Service, run: Run
) -> None:
    follow, interrupts = app_follow(), iter([True])

    def once_interrupted(graftwerk: Any, job_id: str) -> Any:
        if next(interrupts, False):
            raise KeyboardInterrupt
        return follow(graftwerk, job_id)

    monkeypatch.setattr("graftwerk.http.Graftwerk.follow", once_interrupted)
    monkeypatch.setattr("graftwerk.submission.wants_cancel", lambda _: True)
    service.status = "canceled"
    assert run("convert", "a", "b").exit_code == 130
    assert f"/api/jobs/{ID}/cancel" in [request.url.path for request in service.seen]


def app_follow() -> Callable[..., Any]:
    from graftwerk.http import Graftwerk

    return Graftwerk.follow


def test_jobs_lists_with_filters(service: Service, run: Run) -> None:
    result = run("jobs", "--status", "running", "--kind", "merge", "--limit", "5")
    assert dict(service.seen[0].url.params) == {"status": "running", "kind": "merge", "limit": "5"}
    assert ID in result.stdout
    assert "merge → ab" in result.stdout


def test_jobs_watch_ends_with_the_outcome(service: Service, run: Run) -> None:
    service.status = "failed"
    assert run("jobs", "watch", ID).exit_code == 1


def test_jobs_cancel_retry_and_log_speak_to_their_paths(service: Service, run: Run) -> None:
    assert run("jobs", "cancel", ID).exit_code == 0
    assert run("jobs", "retry", ID, "--no-wait").stdout == f"{ID}\n"
    assert run("jobs", "log", ID).stdout == "reading\nwriting\n"
    assert [(request.method, request.url.path) for request in service.seen] == [
        ("POST", f"/api/jobs/{ID}/cancel"),
        ("POST", f"/api/jobs/{ID}/retry"),
        ("GET", f"/api/jobs/{ID}/log"),
    ]


def test_models_lists_shows_and_removes(service: Service, run: Run) -> None:
    assert "5.0 kB" in run("models").stdout
    assert "lineage" in run("models", "show", "ab").stdout
    assert run("models", "rm", "ab").exit_code == 0
    assert (service.seen[2].method, service.seen[2].url.path) == ("DELETE", "/api/models/ab")


def test_chat_sends_all_that_was_said_and_forgets_on_reset(service: Service, run: Run) -> None:
    service.result = {"outputs": [{"text": "hello"}]}
    result = run("chat", "m", "--system", "be kind", "--temperature", "0", input="hi\nagain\n/reset\nnew\n")
    assert result.exit_code == 0
    assert result.stdout == "hello\nhello\nhello\n"
    asked = [json.loads(r.content) for r in service.seen if r.url.path == "/api/jobs" and not r.url.query]
    system = {"role": "system", "content": "be kind"}
    user = {"role": "user", "content": "hi"}
    assert asked[0] == {
        "kind": "generate",
        "model": "m",
        "sampling": {"temperature": 0.0},
        "messages": [system, user],
        "fit_context": True,
    }
    answer = {"role": "assistant", "content": "hello"}
    assert asked[1]["messages"] == [system, user, answer, {"role": "user", "content": "again"}]
    assert asked[2]["messages"] == [system, {"role": "user", "content": "new"}]


def piece(offset: int, text: str) -> dict[str, Any]:
    return {"id": ID, "index": 0, "offset": offset, "text": text, "finish_reason": None}


@pytest.mark.parametrize(
    ("pieces", "shown"),
    [
        ([piece(0, "  he"), piece(4, "llo [red]")], "  hello [red]!\n"),
        ([], "  hello [red]!\n"),
        ([piece(0, "  he"), piece(0, "  hello"), piece(7, " [red]!")], "  he\n  hello [red]!\n"),
        ([piece(0, "other")], "other\n  hello [red]!\n"),
    ],
)
def test_chat_shows_the_text_as_it_grows_and_in_the_end_whole(
    service: Service, run: Run, pieces: list[dict[str, Any]], shown: str
) -> None:
    service.pieces, service.result = pieces, {"outputs": [{"text": "  hello [red]!"}]}
    assert run("chat", "m", input="hi\n").stdout == shown


def test_chat_tells_of_the_turns_that_no_longer_fit(service: Service, run: Run) -> None:
    service.result = {"outputs": [{"text": "hello", "dropped_turns": 3}]}
    assert "oldest 3 turns" in run("chat", "m", input="hi\n").stderr


def test_chat_asks_beforehand_whether_it_can_work_with_whatever_answers(service: Service, run: Run) -> None:
    assert run("chat", "org/m:8b", "-a", "x", input="").exit_code == 0
    (first,) = service.seen
    assert (first.url.path, first.url.params["dry_run"]) == ("/api/jobs", "true")
    sent = json.loads(first.content)
    assert (sent["kind"], sent["model"], sent["adapters"]) == ("generate", "org/m:8b", ["x"])


def test_ctrl_c_in_chat_cancels_the_answer_and_keeps_the_conversation(
    monkeypatch: pytest.MonkeyPatch, service: Service, run: Run
) -> None:
    follow, interrupts = app_follow(), iter([False, True])

    def second_interrupted(graftwerk: Any, job_id: str, *, on_text: Any) -> Any:
        if next(interrupts, False):
            on_text(piece(0, "hel"))
            raise KeyboardInterrupt
        return follow(graftwerk, job_id, on_text=on_text)

    monkeypatch.setattr("graftwerk.http.Graftwerk.follow", second_interrupted)
    service.result = {"outputs": [{"text": "hello"}]}
    result = run("chat", "m", input="one\ntwo\nthree\n")
    assert result.exit_code == 0
    assert result.stdout == "hello\nhel\nhello\n"
    assert "stopped" in result.stderr
    paths = [request.url.path for request in service.seen]
    assert paths.count(f"/api/jobs/{ID}/cancel") == 1
    asked = [
        json.loads(request.content)
        for request in service.seen
        if request.url.path == "/api/jobs" and not request.url.query
    ]
    assert [turn["content"] for turn in asked[2]["messages"]] == ["one", "hello", "three"]


def test_chat_goes_on_after_a_failed_answer(service: Service, run: Run) -> None:
    service.status, service.error = "failed", {"code": "x", "message": "too long", "hint": "shorten it"}
    result = run("chat", "m", input="hi\n/quit\nnot read\n")
    assert result.exit_code == 0
    assert "error: too long" in result.stderr


@pytest.mark.parametrize(
    ("typed", "text"),
    [
        ("你\udce5\udca5", "你"),  # a third of a character is left after a backspace
        ("\udce4\udcbd\udca0", "你"),  # a whole one that a C locale did not decode
        ("a\ud800b", "ab"),
        ("plain 中文", "plain 中文"),
    ],
)
def test_typed_text_is_freed_of_half_characters(typed: str, text: str) -> None:
    assert cleaned(typed) == text


def test_verify_names_what_the_model_was_made_of(service: Service, run: Run) -> None:
    run("verify", "ab", "--base", "llama", "-a", "a,b@0.5")
    rest = {"base": "llama", "adapters": ["a", {"name": "b", "scale": 0.5}]}
    assert service.body == {"kind": "verify", "model": "ab"} | rest


def test_a_check_that_did_not_pass_ends_with_an_exit_code(service: Service, run: Run) -> None:
    service.result = {"passed": False, "differences": [{"tensor": "lm_head.weight", "message": "is missing"}]}
    result = run("verify", "ab")
    assert result.exit_code == 1
    assert "the check did not pass: 1 difference" in result.stderr
    assert "lm_head.weight" in result.stdout
