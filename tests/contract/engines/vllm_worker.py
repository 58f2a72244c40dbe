"""A worker whose engine is vLLM: the small program, or a real one by its settings."""

from pathlib import Path
from typing import Any, ClassVar

from services.settings import Settings
from tests.contract.engines.conftest import FAKE_COMMAND
from tests.contract.engines.worker_driver import EngineWorker
from worker.inference.vllm_models import VllmModels

SAMPLING = {"temperature": 0, "repetition_penalty": 1, "max_new_tokens": 6}
PROMPT = [1, 40, 41]
LIMIT = 16 * 2**30


class VllmWorker(EngineWorker[VllmModels]):
    """The worker; requests that name no model are for `base`."""

    defaults: ClassVar[dict[str, Any]] = {
        "model": "base",
        "prompt_token_ids": PROMPT,
        "return_token_ids": True,
        "sampling": SAMPLING,
    }

    def __init__(self, volume: Path, limit_bytes: int = LIMIT, **options: Any) -> None:
        options = {"vllm_command": FAKE_COMMAND, **options}
        settings = Settings(models_dir=volume, device="cpu", generate_engine="vllm", **options)
        super().__init__(
            "vllm", settings, lambda notify: VllmModels(settings, limit_bytes, notify), limit_bytes
        )
