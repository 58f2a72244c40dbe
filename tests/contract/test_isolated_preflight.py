"""Preflight of the API: headers are read in a process with limits, and plans and refusals come back unchanged."""

import inspect
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from services import errors
from services.errors import GraftwerkError, InternalError, NotReady, ReadLimitExceeded
from services.isolation.limits import Limits
from services.isolation.pool import NoProcessFree, ProcessPool
from services.kinds import parse_request
from services.models.store import ModelStore
from services.preflight import Limits as PlanLimits
from services.preflight import Plan, preflight
from services.preflight.isolated import IsolatedPlanner, error_as_answer, header_processes, plan_of_answer
from tests.api_client import client_of, problem
from tests.hostile_files import HOSTILE, LARGE, MIB
from tests.reference.tensor_files import write_adapter, write_base

SLOW = "tokenizer.model: 32 MiB of fields"
"""Folder whose refusal takes some tenths of a second of the processor."""

ERRORS = [
    found
    for _, found in inspect.getmembers(errors, inspect.isclass)
    if issubclass(found, GraftwerkError) and found is not GraftwerkError
]

REQUESTS: dict[str, dict[str, Any]] = {
    "merge": {"kind": "merge", "base": "base", "adapters": [{"name": "lora", "scale": 0.5}], "target": "x"},
    "convert": {
        "kind": "convert",
        "source": "base",
        "target": "x",
        "output_format": "gguf",
        "dtype": "float16",
    },
    "generate": {"kind": "generate", "model": "base", "adapters": ["lora"], "prompt": "zażółć 𝄞"},
    "verify": {"kind": "verify", "model": "copy", "base": "base", "adapters": ["lora"]},
    "import": {"kind": "import", "source": {"zip": "incoming/a.zip"}, "target": "x"},
    "after another job": {"kind": "verify", "model": "promised"},
}


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    write_base(tmp_path / "base", pieces=101)
    write_base(tmp_path / "copy", pieces=101)
    write_adapter(tmp_path / "lora")
    (tmp_path / "incoming").mkdir()
    with zipfile.ZipFile(tmp_path / "incoming" / "a.zip", "w") as archive:
        archive.writestr("params.json", "{}")
    return tmp_path


@pytest.fixture
def hasty() -> Iterator[ProcessPool]:
    """Processes that have little time and memory."""
    found = ProcessPool("services.preflight.reading", Limits(cpu_seconds=0.15, memory_bytes=200 * MIB))
    yield found
    found.stop()


def planned(volume: Path, body: dict[str, Any], **more: Any) -> Plan:
    limits = PlanLimits(unpack_bytes=2**30)
    return preflight(parse_request(body), ModelStore(volume), ["promised"], limits=limits, **more)


def hostile(volume: Path, name: str, make: Callable[[Path], Any]) -> None:
    (volume / name).mkdir()
    make(volume / name)


def hasty_client(volume: Path, hasty: ProcessPool, monkeypatch: pytest.MonkeyPatch) -> FlaskClient:
    monkeypatch.setattr("api.header_processes", lambda: hasty)
    return client_of(volume)


def own_peak_bytes() -> int:
    """The largest memory of this process so far (proc(5))."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return int(text.split("VmHWM:")[1].split()[0]) * 1024


@pytest.mark.parametrize("body", REQUESTS.values(), ids=REQUESTS)
def test_a_plan_is_the_one_that_this_process_would_make(volume: Path, body: dict[str, Any]) -> None:
    found = planned(volume, body, planner=IsolatedPlanner(header_processes()))
    expected = planned(volume, body)
    assert found.model_dump(exclude={"disk_free_bytes"}) == expected.model_dump(exclude={"disk_free_bytes"})
    assert (found.disk_need.needed_bytes, found.linked_bytes) == (
        expected.disk_need.needed_bytes,
        expected.linked_bytes,
    )


@pytest.mark.parametrize("error_class", ERRORS, ids=lambda found: found.code)
def test_an_error_comes_back_with_all_that_it_carries(error_class: type[GraftwerkError]) -> None:
    error = error_class("3 of 4 fit.", "Use another.")
    vars(error)["order"] = ["b", "a"]
    with pytest.raises(error_class) as caught:
        plan_of_answer(error_as_answer(error))
    assert type(caught.value) is error_class
    assert (caught.value.code, str(caught.value)) == (error_class.code, "3 of 4 fit.")
    assert vars(caught.value) == {"message": "3 of 4 fit.", "hint": "Use another.", "order": ["b", "a"]}


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"kind": "convert", "source": "absent", "target": "x"}, "model_not_found"),
        ({"kind": "generate", "model": "lora", "prompt": "a"}, "wrong_model_kind"),
        ({"kind": "convert", "source": "lora", "target": "x"}, "unsupported_option"),
        ({"kind": "convert", "source": "base", "target": "lora"}, "model_exists"),
        ({"kind": "verify", "model": "base"}, "invalid_request"),
        ({"kind": "import", "source": {"path": "incoming/b"}, "target": "x"}, "source_not_found"),
    ],
)
def test_a_refusal_is_that_of_this_process(volume: Path, body: dict[str, Any], code: str) -> None:
    with pytest.raises(GraftwerkError) as expected:
        planned(volume, body)
    with pytest.raises(GraftwerkError) as found:
        planned(volume, body, planner=IsolatedPlanner(header_processes()))
    assert type(found.value) is type(expected.value)
    assert vars(found.value) == vars(expected.value)
    assert found.value.code == code


def test_files_beyond_the_limits_are_refused_and_the_next_plan_is_made(
    volume: Path, hasty: ProcessPool
) -> None:
    hostile(volume, "slow", HOSTILE[SLOW][0])
    (volume / "large").mkdir()
    LARGE["manifest of 32 MiB"][1](volume / "large")
    planner = IsolatedPlanner(hasty)
    before = own_peak_bytes()
    body = {"kind": "extend-tokenizer", "base": "slow", "addition": "slow", "target": "x"}
    with pytest.raises(
        ReadLimitExceeded, match=r"more than 0\.15 s of processor time: the files are damaged"
    ):
        planned(volume, body, planner=planner)
    with pytest.raises(
        ReadLimitExceeded, match=r"(took more than|ended its process).*: the files are damaged"
    ):
        planned(volume, {"kind": "verify", "model": "large"}, planner=planner)
    assert own_peak_bytes() - before < 20 * MIB
    assert planned(volume, REQUESTS["verify"], planner=planner).reads[0].name == "copy"


def test_a_process_that_has_taken_much_memory_is_replaced(volume: Path) -> None:
    (volume / "large").mkdir()
    LARGE["manifest of 32 MiB"][1](volume / "large")
    processes = ProcessPool("services.preflight.reading", Limits(cpu_seconds=20))
    planner = IsolatedPlanner(processes)
    planned(volume, REQUESTS["verify"], planner=planner)
    first = processes.pids
    planned(volume, REQUESTS["merge"], planner=planner)
    assert processes.pids == first
    assert planned(volume, {"kind": "verify", "model": "large"}, planner=planner).reads[0].name == "large"
    assert planned(volume, REQUESTS["verify"], planner=planner).kind == "verify"
    assert len(processes.pids) == 1
    assert processes.pids != first
    processes.stop()


@pytest.mark.parametrize("path", ["/api/jobs", "/api/jobs?dry_run=true"])
def test_a_hostile_folder_refuses_its_own_submission_alone(
    volume: Path, hasty: ProcessPool, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    hostile(volume, "slow", HOSTILE[SLOW][0])
    client = hasty_client(volume, hasty, monkeypatch)
    body = {"kind": "extend-tokenizer", "base": "slow", "addition": "slow", "target": "x"}
    found = problem(client.post(path, json=body), 422, "read_limit_exceeded")
    assert "slow: Reading its headers took more than 0.15 s of processor time" in found["detail"]
    assert client.post(path, json=REQUESTS["merge"]).status_code in (200, 202)


def test_a_model_beyond_the_limits_is_refused_in_the_shape_of_openai(
    volume: Path, hasty: ProcessPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile(volume, "slow", HOSTILE[SLOW][0])
    client = hasty_client(volume, hasty, monkeypatch)
    for response in (
        client.get("/v1/models/slow"),
        client.post("/v1/completions", json={"model": "slow", "prompt": "a"}),
    ):
        assert (response.status_code, response.get_json()["error"]["code"]) == (400, "read_limit_exceeded")


def test_an_unexpected_error_is_an_internal_one_and_its_traceback_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    answer = {"fault": "KeyError", "traceback": "Traceback: 'x'"}
    with pytest.raises(InternalError, match=r"failed \(KeyError\)"):
        plan_of_answer(answer)
    assert "Traceback: 'x'" in caplog.text


def test_a_volume_that_does_not_respond_is_not_the_fault_of_the_files(volume: Path) -> None:
    processes = ProcessPool("services.preflight.reading", Limits(seconds=0.0))
    with pytest.raises(NotReady, match="more than 0 s: the volume or the machine does not respond"):
        planned(volume, REQUESTS["verify"], planner=IsolatedPlanner(processes))
    processes.stop()


# ---- several requests at once -------------------------------------------------------------------------


def test_a_request_does_not_wait_for_one_that_runs_into_its_limits(volume: Path) -> None:
    """The long request's process is held until the other request has its answer."""
    processes = ProcessPool("services.preflight.reading", Limits())
    planner = IsolatedPlanner(processes)
    with processes._taken():
        assert planned(volume, REQUESTS["verify"], planner=planner).kind == "verify"
    assert len(processes.pids) == 1, "the held process was never started"
    processes.stop()


def test_many_requests_at_once_take_turns_on_few_processes(volume: Path) -> None:
    processes = ProcessPool("services.preflight.reading", Limits(), most=2)
    planner, found, end = IsolatedPlanner(processes), [], threading.Barrier(12)

    def submit() -> None:
        found.append(planned(volume, REQUESTS["merge"], planner=planner))
        end.wait()  # the kernel ends a process with the thread that has started it

    threads = [threading.Thread(target=submit) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [plan.writes.name for plan in found if plan.writes] == ["x"] * 12
    assert 1 <= len(processes.pids) <= 2
    processes.stop()


def test_a_request_that_gets_no_process_is_refused_for_now(volume: Path) -> None:
    processes = ProcessPool("services.preflight.reading", Limits(seconds=0.05), most=1)
    with processes._taken(), pytest.raises(NotReady, match="1 processes were busy") as caught:
        planned(volume, REQUESTS["verify"], planner=IsolatedPlanner(processes))
    assert isinstance(caught.value.__cause__, NoProcessFree)
