"""The command in a terminal: progress, the question after Ctrl-C, exit codes, completion."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.e2e.conftest import MINIATURE, Line
from tests.e2e.product import ENDED, Json, Product
from tests.terminal import Terminal, terminal

pytestmark = pytest.mark.tmux

QUESTION = "press c to cancel the job, d to detach, Enter to go on"


@pytest.fixture
def shell(product: Product, tmp_path: Path) -> Iterator[Terminal]:
    """A shell whose commands reach the running product."""
    with terminal(tmp_path, GRAFTWERK_URL=product.url) as running:
        yield running


class Blockade:
    """Slow merges before which no other job of their queue runs."""

    def __init__(self, product: Product, slow: Json) -> None:
        self._product = product
        targets = [f"blockade-{uuid4()}" for _ in range(6)]
        self._ids = [product.submit(**slow, target=target)["id"] for target in targets]

    def lift(self) -> None:
        """Cancels those that have not ended."""
        for job_id in reversed(self._ids):
            if self._product.job(job_id)["status"] not in ENDED:
                self._product.http.post(f"/api/jobs/{job_id}/cancel")


@pytest.fixture
def blockade(product: Product, line: Line, slow: Json) -> Iterator[Blockade]:
    """A queue of merges in which new jobs wait."""
    found = Blockade(product, slow)
    yield found
    found.lift()


def interrupt(shell: Terminal, command: str = "graftwerk verify merged") -> str:
    """Runs a verification that waits in the queue, presses Ctrl-C and returns the job's id."""
    shell.run(command)
    job_id = shell.wait_for(r"^job (\S+)$")[1]
    shell.wait_for("verify with merged .*waiting")
    shell.press("C-c")
    shell.wait_for(QUESTION)
    return job_id


def test_a_job_shows_its_progress_and_one_line_at_the_end(shell: Terminal, slow: Json) -> None:
    shell.run("graftwerk merge slow --adapters slow-adapter --target seen --dtype float32 --force")
    shell.wait_for(r"merge → seen .*writing tensors .*MB of .*MB")
    shell.wait_for(r"^exit code 0$")
    shell.wait_for(r"^merged slow \+ slow-adapter → seen in .* s, verified \(.* rows?, logits .*\)\.")
    shell.wait_for("Next: graftwerk chat seen")


def test_c_cancels_without_enter(product: Product, shell: Terminal, blockade: Blockade) -> None:
    job_id = interrupt(shell)
    shell.type("c")
    shell.wait_for(r"^exit code 130$")
    assert product.job(job_id)["status"] == "canceled"


def test_the_question_is_asked_at_the_terminal_where_stdin_is_a_file(
    product: Product, shell: Terminal, blockade: Blockade
) -> None:
    job_id = interrupt(shell, "echo detach | graftwerk verify merged")
    shell.type("c")
    shell.wait_for(r"^exit code 130$")
    assert product.job(job_id)["status"] == "canceled"


def test_d_detaches_and_leaves_what_is_typed_after_it(
    product: Product, shell: Terminal, blockade: Blockade
) -> None:
    job_id = interrupt(shell)
    shell.type("decho 左边 $((6 * 7))\n")
    shell.wait_for(r"^左边 42$")
    shell.wait_for(rf"Detached; the job continues. Follow it with `graftwerk jobs watch {job_id}`")
    assert product.job(job_id)["status"] == "queued"
    product.cancel(job_id)


def test_enter_goes_on_and_other_keys_mean_nothing(
    product: Product, shell: Terminal, blockade: Blockade
) -> None:
    job_id = interrupt(shell)
    shell.press("Right", "Left")
    shell.type("xC中")
    shell.press("Enter")
    shell.wait_for("Going on")
    blockade.lift()
    shell.wait_for(r"^exit code 0$")
    shell.wait_for(r"^verified merged against its manifest in .*, passed")
    assert product.job(job_id)["status"] == "succeeded"


def test_a_second_ctrl_c_detaches(product: Product, shell: Terminal, blockade: Blockade) -> None:
    job_id = interrupt(shell)
    shell.press("C-c")
    shell.wait_for("Detached; the job continues")
    shell.wait_for(r"^exit code 130$")
    assert product.job(job_id)["status"] == "queued"
    product.cancel(job_id)


def test_a_refusal_and_a_missing_service_have_their_exit_codes(shell: Terminal, line: Line) -> None:
    shell.run("graftwerk convert absent new")
    shell.wait_for(r"^exit code 3$")
    shell.run("graftwerk models --url http://127.0.0.1:9")
    shell.wait_for(r"^exit code 4$")
    shell.run("graftwerk jobs --status failed --limit 1")
    shell.wait_for(r"^exit code 0$")


CHAIN = """\
jobs:
  - {{name: adapter, kind: import, source: {source}, target: chained-zh}}
  - {{name: damaged, kind: import, source: {source}, target: damaged-zh, sha256: {{tokenizer.model: "{digest}"}}}}
  - {{name: merge, kind: merge, base: llama, adapters: [chained-zh], target: chained}}
  - {{name: never, kind: merge, base: llama, adapters: [damaged-zh], target: never-chained}}
"""


def test_a_chain_uploads_shows_each_job_and_ends_with_the_first_failure(
    product: Product, shell: Terminal, line: Line, tmp_path: Path
) -> None:
    shutil.copy(MINIATURE / "chinese-llama-lora.zip", tmp_path / "zh.zip")
    text = CHAIN.format(source="zh.zip", digest="0" * 64)
    (tmp_path / "walk.yaml").write_text(text, encoding="utf-8")
    shell.run("graftwerk chain walk.yaml")
    shell.wait_for(r"^exit code 1$")
    shell.wait_for(r"push → chained-zh .*done 100%")
    shell.wait_for(r"merge: merge → chained .*done 100%")
    shell.wait_for(r"never: merge → never-chained .*failed")
    shell.wait_for(r"^merged llama \+ chained-zh → chained in .*, verified \(")
    shell.wait_for(r"^error: damaged: import → damaged-zh: .*tokenizer\.model")
    assert "chained" in product.model_names()
    assert not {"damaged-zh", "never-chained"} & set(product.model_names())


def test_a_mistake_in_a_chain_ends_with_2_and_its_line(shell: Terminal, tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text("jobs:\n  - {name: a, kind: verify, model: m, after: [b]}\n")
    shell.run("graftwerk chain wrong.yaml")
    shell.wait_for(r"^exit code 2$")
    shell.wait_for(r"^error: wrong\.yaml, line 2: 'a' is after 'b'")


def test_watch_without_an_id_follows_all_unfinished_jobs(
    product: Product, shell: Terminal, blockade: Blockade
) -> None:
    shell.run("graftwerk jobs watch")
    shell.wait_for(r"merge → blockade-.*\n.*merge → blockade-.*waiting")
    shell.press("C-c")
    shell.wait_for("press c to cancel the 6 jobs")
    shell.press("Enter")
    shell.wait_for("Going on")
    blockade.lift()
    shell.wait_for(r"^exit code 130$")
    shell.wait_for(r"^merge → blockade-.*: canceled$")


def test_a_model_is_pushed_and_pulled(shell: Terminal, line: Line, tmp_path: Path) -> None:
    shell.run(f"graftwerk push {MINIATURE}/chinese-alpaca-lora.zip --name pushed")
    shell.wait_for(r"push → pushed .*done 100%")
    shell.wait_for(r"^imported pushed in ")
    shell.run("graftwerk pull merged")
    shell.wait_for(r"pull → merged .*done 100%")
    shell.wait_for(r"^exit code 0$")
    assert (tmp_path / "merged" / "model.safetensors").is_file()


def test_the_doctor_finds_the_service_well_and_a_missing_one_not(shell: Terminal) -> None:
    shell.run("graftwerk doctor")
    shell.wait_for(r"^exit code 0$")
    for name in (
        "service",
        "clock",
        "redis",
        "volume",
        "worker-generate",
        "versions",
        "queue merge",
        "worker merge",
    ):
        shell.wait_for(rf"^ok +{name} ")
    shell.run("graftwerk doctor --url http://127.0.0.1:9")
    shell.wait_for(r"^exit code 1$")
    shell.wait_for(r"^failed +service ")


def test_installed_completion_offers_the_models_of_the_service(shell: Terminal, line: Line) -> None:
    shell.run("graftwerk --install-completion")
    shell.wait_for(r"^exit code 0$")
    shell.restart()
    shell.type("graftwerk models show merg")
    shell.press("Tab")
    shell.wait_for(r"graftwerk models show merged")
