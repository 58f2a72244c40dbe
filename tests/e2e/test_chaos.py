"""Short runs of the chaos driver; only where the processes run on this machine."""

import pytest

from tests.chaos.short_runs import kill_under_seven_streams, run

SHORT = ("--seed", "117", "--minutes", "0.3", "--jobs", "22")
"""22 jobs, two of them canceled; the generate worker with seven streams, a job process and Redis are killed."""


@pytest.mark.timeout(700)  # a minute on two quiet cores
def test_a_short_run_of_faults_accounts_for_everything() -> None:
    assert "| all, each with one end | 22 |" in run(*SHORT)


@pytest.mark.timeout(700)  # a minute on two quiet cores
def test_seven_streams_of_llama_cpp_survive_its_death_and_that_of_the_worker() -> None:
    kill_under_seven_streams("llama.cpp")
