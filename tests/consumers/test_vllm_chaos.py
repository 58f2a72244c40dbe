"""The real vLLM below the whole service, when processes are killed."""

import pytest

from tests.chaos.short_runs import kill_under_seven_streams


@pytest.mark.timeout(700)
def test_seven_streams_of_vllm_survive_its_death_and_that_of_the_worker() -> None:
    kill_under_seven_streams("vllm-cpu")
