"""List of `incoming/` for the API: names and archives are foreign, and are read in a process with limits."""

from services.errors import NotReady, ReadLimitExceeded
from services.isolation.limits import LimitExceeded, ProcessDied
from services.isolation.pool import NoProcessFree, ProcessPool
from services.models.incoming import IncomingList
from services.models.store import ModelStore
from services.preflight.isolated import is_of_clock, stop_reason


def read_incoming(store: ModelStore, processes: ProcessPool, *, unpack_limit_bytes: int) -> IncomingList:
    """Returns the list.

    Raises:
        VolumeUnavailable: the volume is not mounted or cannot be read.
        ReadLimitExceeded: reading the archives took more time or memory than the limits allow.
        NotReady: the processes are busy, or the volume does not respond.
    """
    store.volume.require()
    question = {"root": str(store.root), "unpack_limit_bytes": unpack_limit_bytes}
    try:
        answer = processes.call({"incoming": question})
    except (LimitExceeded, ProcessDied) as error:
        message = f"Listing incoming/ {stop_reason(error)}."
        if is_of_clock(error):
            raise NotReady(message, "Try again later.") from error
        raise ReadLimitExceeded(
            message, "Remove archives from it that are not from a publisher you trust."
        ) from error
    except NoProcessFree as error:
        raise NotReady(f"The folder incoming/ was not listed: {error}.", "Try again later.") from error
    return IncomingList.model_validate(answer)
