"""The plan of a chaos run, its table of faults, and its accounts of keys and texts."""

from uuid import uuid4

import fakeredis
import pytest

from tests.chaos.faults import FAULT_OF_NAME, FAULTS
from tests.chaos.plan import make_plan
from tests.chaos.recipes import QUEUE_OF_KIND, RECIPES, offered, roles_of
from tests.chaos.recorder import Seen
from tests.chaos.recovery import Times, add_victim
from tests.chaos.redis_keys import count_keys


def test_the_same_seed_gives_the_same_jobs_and_faults() -> None:
    first, again, other = (make_plan(seed, 10, 300) for seed in (1, 1, 2))
    assert first == again
    assert [job.recipe for job in first.jobs] != [job.recipe for job in other.jobs]
    assert first.faults != other.faults


def test_a_run_of_ten_minutes_has_every_fault_and_every_recipe() -> None:
    plan = make_plan(1, 10, 300)
    assert sorted(job.number for job in plan.all_jobs) == list(range(300))
    assert {fault.name for fault in plan.faults} == {fault.name for fault in FAULTS}
    assert set(plan.recipes) == set(offered("auto"))
    assert any(job.is_poison for job in plan.jobs)
    assert any(job.cancel_after is not None for job in plan.jobs)


@pytest.mark.parametrize("engine", ["auto", "vllm"])
def test_a_fault_brings_jobs_that_run_when_it_hits(engine: str) -> None:
    for fault in make_plan(1, 10, 300, engine).faults:
        is_hit = fault.role in ("convert", "merge", "generate", "engine")
        meets_crowd = FAULT_OF_NAME[fault.name].meets_crowd and fault.role in ("generate", "engine")
        assert len(fault.baits) == (7 if meets_crowd else int(is_hit))
        assert all(fault.role in roles_of(bait.recipe, engine) for bait in fault.baits)


def test_a_run_with_the_stand_in_has_no_requests_that_it_cannot_answer() -> None:
    plan = make_plan(1, 10, 300, "vllm")
    assert set(plan.recipes) == set(offered("vllm"))
    assert not any(
        RECIPES[name].is_formed or "gguf" in str(RECIPES[name].request.get("model")) for name in plan.recipes
    )


def test_a_job_is_submitted_after_the_job_that_it_depends_on() -> None:
    for job in make_plan(1, 10, 300).jobs:
        follows = RECIPES[job.recipe].follows
        assert (job.after is None) == (follows is None)
        assert job.after is None or job.after < job.number


def test_every_fault_hits_roles_and_has_a_name_of_its_own() -> None:
    assert all(fault.roles for fault in FAULTS)
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)


def test_every_kind_of_the_load_has_the_queue_that_the_service_gives_it() -> None:
    from services.kinds import KINDS

    assert {kind: KINDS[kind].queue for kind in QUEUE_OF_KIND} == QUEUE_OF_KIND


def test_a_job_that_was_put_back_counts_until_it_runs_again() -> None:
    times = Times()
    statuses = [Seen(1.0, "running"), Seen(7.5, "queued"), Seen(9.0, "running"), Seen(12.0, "succeeded")]
    add_victim(times, 2.0, statuses)
    assert (times.noticed, times.again, times.kept_running) == ([5.5], [7.0], 0)


def test_a_job_that_ended_after_a_fault_was_not_put_back() -> None:
    times = Times()
    add_victim(times, 2.0, [Seen(1.0, "running"), Seen(4.0, "succeeded")])
    assert (times.noticed, times.again, times.kept_running) == ([], [], 1)


def test_a_key_that_no_kind_explains_is_a_problem() -> None:
    redis = fakeredis.FakeRedis()
    redis.set("graftwerk:target:made-1", "x")
    assert count_keys(redis, jobs=5)[1] == ["the key graftwerk:target:made-1 is not explained"]


def test_keys_of_jobs_must_expire_and_be_no_more_than_the_jobs() -> None:
    redis = fakeredis.FakeRedis()
    kept, *others = [f"graftwerk:log:{uuid4()}" for _ in range(3)]
    redis.set(kept, "x")
    for key in others:
        redis.set(key, "x", ex=60)
    rows, problems = count_keys(redis, jobs=2)
    reason = "log of each job that wrote one"
    assert [(row.count, row.limit) for row in rows if row.reason == reason] == [(3, 2)]
    assert problems == [f"the key {kept} does not expire", f"{reason}: 3 keys, at most 2"]
