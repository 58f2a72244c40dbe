"""A loaded model in the memory of an inference worker, with its engine and its adapters."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from services.errors import InternalError
from services.generate import Engine, GenerationRequest, LoadedModel, ServedModel
from services.generate.adapter_stack import AdapterStack
from worker.inference.adapter_stacks import AdapterPool
from worker.inference.model_engine import ModelEngine
from worker.inference.model_key import ModelKey


@dataclass(slots=True, eq=False)
class CachedModel:
    """A loaded model and its engine, or a stack of unmerged adapters on one, `base`, whose engine it shares.

    `refcount` counts the jobs that run on it, on a base also those of its stacks. `owners` has the execution's name for each request
    to the engine, and `last_use` orders the models by their last use, which ended at the time `idle_since`. `share_bytes` returns
    its share of a server's memory, if a server holds it. `is_unmerged`: its adapters are applied to the base while it runs.
    """

    key: ModelKey
    loaded: LoadedModel | ServedModel
    engine: ModelEngine
    owners: dict[str, str] = field(default_factory=dict)
    refcount: int = 0
    last_use: int = 0
    idle_since: float = 0.0
    share_bytes: Callable[[], int] | None = None
    is_unmerged: bool = False
    base: "CachedModel | None" = None
    stack: AdapterStack | None = None
    _pool: AdapterPool | None = None

    @property
    def pool(self) -> AdapterPool:
        """Parts of the stacks on this model. Raises InternalError if a server has it."""
        if self._pool is None:
            assert isinstance(self.engine, Engine)
            self._pool = AdapterPool(self.local, self.engine)
        return self._pool

    @property
    def root(self) -> "CachedModel":
        """The model whose engine this is."""
        return self.base or self

    @property
    def parts(self) -> Mapping[object, int]:
        """Bytes of what is in memory, by identity: stacks share adapters."""
        return {self: self.size_bytes} if self.stack is None else self.stack.parts

    @property
    def adapters(self) -> Literal["merged", "unmerged"] | None:
        """Form of its adapters, None if it has none."""
        if not self.key.adapters:
            return None
        return "unmerged" if self.is_unmerged else "merged"

    @property
    def size_bytes(self) -> int:
        """Bytes of memory that it takes."""
        return self.loaded.size_bytes if self.share_bytes is None else self.share_bytes()

    @property
    def local(self) -> LoadedModel:
        """The model in this process. Raises InternalError if a server has it."""
        if not isinstance(self.loaded, LoadedModel):
            raise InternalError(f"{self.key.name} is not in this process.")
        return self.loaded

    def submit(self, request: GenerationRequest, *, owner: str) -> str:
        """Submits a request to the engine and returns its id; its events go to the execution of this name.

        Raises:
            GraftwerkError: see `Engine.submit`.
        """
        request_id = self.engine.submit(replace(request, adapters=self.stack))
        self.root.owners[request_id] = owner
        return request_id
