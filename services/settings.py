"""Settings of all processes: one frozen class, read from `GRAFTWERK_*` in the entry points only."""

import os
import re
import shlex
from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.generate_engines import ADAPTER_RANK, ADAPTER_RANKS, GenerateEngine

HUB_ENDPOINT = "https://huggingface.co"
LOOPBACK_HOSTS = ("127.0.0.1", "::1", "localhost")


class Settings(BaseSettings):
    """Settings, each set as `GRAFTWERK_<NAME>` in the environment; secrets also as `…_FILE`."""

    model_config = SettingsConfigDict(env_prefix="GRAFTWERK_", frozen=True, extra="ignore")

    redis_url: SecretStr | None = Field(
        None, description="Address of Redis; `serve` starts its own if unset."
    )
    redis_url_file: Path | None = Field(None, description="A file that holds the Redis URL.")
    models_dir: Path = Field(Path("var/models"), description="The model volume.")
    host: str = Field("127.0.0.1", description="Address that the API listens on.")
    port: int = Field(8000, ge=0, le=65535, description="Port of the API; 0 takes a free one.")
    api_keys_file: Path | None = Field(None, description="Bearer keys: lines of `sha256 role name`.")
    session_secret: SecretStr | None = Field(
        None, description="Secret that signs the sessions of people; made and kept in Redis if unset."
    )
    session_secret_file: Path | None = Field(None, description="A file that holds that secret.")
    behind_gateway: bool = Field(
        False, description="The port is published elsewhere, on loopback only (as in the compose file)."
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N.")
    generate_slots: int = Field(8, ge=1, le=256, description="Largest number of sequences in one batch.")
    resident_models_bytes: int = Field(
        0, ge=0, description="Memory for loaded models; 0 takes half of the device's memory."
    )
    kv_cache_bytes: int = Field(
        0,
        ge=0,
        description="Memory of a worker for keys and values of all its running sequences and kept prefixes, in addition to the models; "
        "0 takes a quarter of the device's memory.",
    )
    generate_engine: GenerateEngine = Field(
        "auto",
        description="Engine that generates: `auto`, `graftwerk`, `llama.cpp` or `vllm`; the same for API and workers.",
    )
    engine_idle_seconds: int = Field(
        3600,
        ge=0,
        description="Time without jobs after which a process of llama.cpp or vLLM is stopped; 0 keeps it.",
    )
    llama_cpp_context: int = Field(
        8192,
        ge=16,
        description="Longest context of a GGUF model in llama.cpp, in tokens; the model's own may be shorter. Each of "
        "`GENERATE_SLOTS` outputs has one.",
    )
    llama_cpp_start_seconds: int = Field(
        600, ge=1, description="Longest time in which llama.cpp loads a model."
    )
    vllm_command: str = Field(
        "vllm serve",
        description="Command that starts a server of vLLM, as in a shell; arguments are appended.",
    )
    vllm_tensor_parallel: int = Field(
        1, ge=1, le=64, description="Number of GPUs that share each layer of a model in vLLM."
    )
    vllm_dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="dtype of vLLM; `auto` is float32 on a CPU and bfloat16 on a GPU."
    )
    vllm_context: int = Field(
        0, ge=0, description="Longest context in vLLM, in tokens; 0 takes the model's own."
    )
    vllm_cache_bytes: int = Field(
        0,
        ge=0,
        description="KV cache of each model in vLLM; 0 takes 4 GiB on a CPU, and what the model leaves on a GPU.",
    )
    vllm_adapter_rank: int = Field(
        ADAPTER_RANK,
        ge=1,
        le=ADAPTER_RANKS[-1],
        description="Largest rank of an adapter that vLLM applies unmerged.",
    )
    vllm_start_seconds: int = Field(1800, ge=1, description="Longest time until a server of vLLM is ready.")
    generate_backend_url: str | None = Field(None, description="An OpenAI-compatible server for generation.")
    generate_backend_key: SecretStr | None = Field(None, description="The API key of that server.")
    generate_backend_key_file: Path | None = Field(None, description="A file that holds that key.")
    job_timeout_seconds: int = Field(6 * 3600, ge=1, description="Longest time that one job may run.")
    job_retention_seconds: int = Field(
        7 * 86400, ge=60, description="Time that the record of an ended job is kept."
    )
    queue_limit: int = Field(1000, ge=1, description="Largest number of waiting jobs; more are refused.")
    queue_limit_per_key: int | None = Field(
        None,
        ge=1,
        description="Largest number of waiting jobs of one API key; requests without a key share one.",
    )
    queue_limits: str = Field(
        "",
        description="Largest numbers of waiting jobs of kinds: `kind=number,…`, for example `merge=20,generate=500`.",
    )
    body_limit_bytes: int = Field(
        8 * 2**20, ge=1024, description="Largest body of a request in JSON; uploads have their own limit."
    )
    upload_limit_bytes: int = Field(200 * 2**30, ge=1, description="Largest size of one upload.")
    upload_quota_bytes: int = Field(
        400 * 2**30, ge=1, description="Largest size of all unfinished uploads together."
    )
    upload_retention_seconds: int = Field(
        86400, ge=1, description="Time after its last bytes at which an upload that no job needs is removed."
    )
    unpack_limit_bytes: int = Field(
        400 * 2**30, ge=1, description="Largest size that one archive may unpack to."
    )
    hub_enabled: bool = Field(False, description="Imports may read a model hub over the network.")
    hub_token: SecretStr | None = Field(None, description="Token of an account of the Hub.")
    hub_token_file: Path | None = Field(None, description="A file that holds that token.")
    hf_endpoint: str | None = Field(
        None, description="Address of the Hub or of a mirror; `HF_ENDPOINT` if unset."
    )
    webhook_secret: SecretStr | None = Field(
        None,
        description="Secret that signs webhooks, `whsec_` and base64; requests may have a `webhook` if it is set.",
    )
    webhook_secret_file: Path | None = Field(None, description="A file that holds that secret.")
    webhook_allow_private: bool = Field(
        False, description="Webhooks may be sent to private, loopback and link-local addresses."
    )
    log_format: Literal["text", "json"] = Field("text", description="Format of log lines.")
    torch_threads: int = Field(
        0,
        ge=0,
        description="Threads of a worker; 0 takes half of the usable cores for generation and all of them for other jobs.",
    )

    @field_validator("models_dir")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().resolve()

    @field_validator("hf_endpoint")
    @classmethod
    def _hub_address(cls, value: str | None) -> str | None:
        if value and not re.match(r"https?://[^/]+", value):
            raise ValueError(f'The address must look like "{HUB_ENDPOINT}", not {value!r}.')
        return value or None

    @field_validator("generate_backend_url")
    @classmethod
    def _server(cls, value: str | None) -> str | None:
        if not value:
            return None
        if not re.match(r"https?://[^/]+", value):
            raise ValueError(f'The address must look like "http://vllm:8000", not {value!r}.')
        return value.rstrip("/").removesuffix("/v1")  # OpenAI's clients want it there

    @field_validator("vllm_command")
    @classmethod
    def _command(cls, value: str) -> str:
        if not shlex.split(value):
            raise ValueError("The command is empty; the default is 'vllm serve'.")
        return value

    @property
    def vllm_program(self) -> str:
        """The program of `vllm_command`."""
        return shlex.split(self.vllm_command)[0]

    @property
    def backend_key(self) -> str | None:
        """API key of the generation server, from the setting or from its file."""
        if self.generate_backend_key is not None:
            return self.generate_backend_key.get_secret_value()
        if self.generate_backend_key_file is not None:
            return self.generate_backend_key_file.read_text(encoding="utf-8").strip()
        return None

    @property
    def hub_secret(self) -> str | None:
        """Token for the Hub, from the setting or from its file; an empty one is none."""
        return _secret(self.hub_token, self.hub_token_file)

    @property
    def webhook_key(self) -> str | None:
        """Secret that signs webhooks, from the setting or from its file; an empty one is none."""
        return _secret(self.webhook_secret, self.webhook_secret_file)

    @property
    def session_key(self) -> str | None:
        """Secret that signs sessions, from the setting or from its file; an empty one is none."""
        return _secret(self.session_secret, self.session_secret_file)

    @property
    def hub_endpoint(self) -> str:
        """Address of the Hub without a slash at its end: the setting, `HF_ENDPOINT`, or the public Hub."""
        return (self.hf_endpoint or os.environ.get("HF_ENDPOINT") or HUB_ENDPOINT).rstrip("/")

    @cached_property
    def redis_address(self) -> str:
        """Redis URL, from the setting or from its file."""
        if self.redis_url is not None:
            return self.redis_url.get_secret_value()
        if self.redis_url_file is not None:
            return self.redis_url_file.read_text(encoding="utf-8").strip()
        return "redis://127.0.0.1:6379/0"


def _secret(value: SecretStr | None, file: Path | None) -> str | None:
    """Returns a secret, from its setting or from its file; an empty one is none."""
    if value is not None:
        return value.get_secret_value().strip() or None
    return None if file is None else file.read_text(encoding="utf-8").strip() or None
