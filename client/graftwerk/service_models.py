"""The service and the Hub as the API describes them. Fields that this version does not know are kept."""

from datetime import datetime

from graftwerk.result import Result


class EngineProcess(Result):
    """A model that a process of llama.cpp or vLLM below a worker has; `pid` is the id of its group on the worker's machine."""

    model: str
    engine: str
    pid: int


class KVCacheState(Result):
    """Keys and values in the memory of one inference worker; counters since its start."""

    limit_bytes: int
    held_bytes: int
    waiting_requests: int
    prefix_bytes: int
    prefix_hits: int
    prefix_reused_tokens: int
    prefix_read_tokens: int
    prefix_evictions: int


class WorkerState(Result):
    """A living worker process: its queue, the jobs that it runs, its engines with their versions, and the models in its memory."""

    name: str
    queue: str
    state: str
    job_ids: list[str]
    last_heartbeat: datetime
    device: str
    models: list[str] = []
    memory_bytes: int = 0
    engines: dict[str, str] = {}
    processes: list[EngineProcess] = []
    kv_cache: KVCacheState | None = None


class QueueState(Result):
    """Counts of one queue: queued jobs, running jobs, living workers."""

    waiting: int
    running: int
    workers: int


class KindState(Result):
    """Counts of the jobs of one kind, and the queue whose workers run them."""

    queue: str
    waiting: int
    running: int
    oldest_wait_seconds: float


class VolumeState(Result):
    """The model volume: number of models and its bytes; jobs have reserved some of the free ones."""

    models: int
    free_bytes: int
    total_bytes: int
    reserved_bytes: int


class MemoryState(Result):
    """Memory of the machine or container that the API runs in; jobs have reserved some of the available bytes."""

    total_bytes: int
    available_bytes: int
    reserved_bytes: int


class EngineState(Result):
    """The engine that generates with models of each kind, None if no worker has it; `backend` is another server, asked first."""

    setting: str
    models: dict[str, str | None]
    backend: str | None


class System(Result):
    """Workers, queues and kinds of job by name, the engine, the volume, memory, and versions by distribution."""

    workers: list[WorkerState]
    queues: dict[str, QueueState]
    kinds: dict[str, KindState]
    engine: EngineState
    volume: VolumeState
    memory: MemoryState
    versions: dict[str, str]


class MadeFrom(Result):
    """A model that was made from another one by a job of the kind `operation`; `roles` is what the other one was in it."""

    name: str
    kind: str
    operation: str
    roles: list[str]


class DependentJob(Result):
    """An unfinished job that reads or makes a model."""

    id: str
    kind: str
    status: str


class Dependents(Result):
    """Dependents of a model: models made from it, adapters whose base it is, and unfinished jobs, which prevent its deletion."""

    name: str
    models: list[MadeFrom]
    adapters: list[str]
    jobs: list[DependentJob]


class IncomingEntry(Result):
    """A folder, an archive or a file below `incoming/`, which an import can take; `problem` says why it would be refused."""

    path: str
    kind: str
    size_bytes: int
    modified_at: datetime
    looks_like: str
    problem: str | None = None


class IncomingList(Result):
    """Entries in the order of their paths; `truncated` is true if there are more than the service lists."""

    entries: list[IncomingEntry]
    truncated: bool


class TemplateDescription(Result):
    """A prompt template: its name in requests, its purpose, a prompt in it, and the texts that end a turn."""

    name: str
    description: str
    default_system: str | None
    example: str | None
    stop: list[str]


class HubModel(Result):
    """A repository that a search of the Hub has found; null where the Hub does not say."""

    id: str
    downloads: int | None
    likes: int | None
    gated: bool
    private: bool
    library: str | None
    task: str | None
    modified_at: datetime | None


class HubFile(Result):
    """A file of a repository; `selected` is true if an import without `files` fetches it."""

    path: str
    size_bytes: int
    selected: bool


class HubProblem(Result):
    """The reason why an import of a repository would be refused: a stable code, the finding and the remedy."""

    code: str
    detail: str
    hint: str = ""


class HubRepository(Result):
    """A repository of the Hub at one commit, its files, and the bytes of all files and of the selected ones."""

    id: str
    revision: str | None
    commit: str
    gated: bool
    private: bool
    files: list[HubFile]
    size_bytes: int
    selected_bytes: int
    problem: HubProblem | None
