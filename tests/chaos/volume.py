"""The model volume of a run: a small ext4 file system in a file, which can be filled and slowed down.

Mounting needs root. Without it the volume is a plain folder, and the faults of the disk are left out.
"""

import os
import shutil
import subprocess
from pathlib import Path

SIZE_BYTES = 12 * 2**30
"""Size of the file system; its file is sparse."""

KEPT_FREE_BYTES = 64 * 1024
FREEZE_SECONDS, THAW_SECONDS = 0.4, 0.1


class Volume:
    """Folder of the models; `missing` is the reason why its disk has no faults, or None."""

    def __init__(self, folder: Path, *, is_mounted: bool = True) -> None:
        self.mount = folder / "volume"
        self.root = self.mount / "models"
        self._image = folder / "volume.img"
        self._filler = self.mount / "filler"
        self._slowing: subprocess.Popen[bytes] | None = None
        self.mount.mkdir()
        self.missing = self._mount() if is_mounted else "the volume is a plain folder in this run"
        (self.root / "incoming").mkdir(parents=True)

    def fill(self) -> None:
        """Leaves almost no free byte."""
        stats = os.statvfs(self.mount)
        free_bytes = stats.f_bavail * stats.f_frsize - KEPT_FREE_BYTES
        with self._filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, free_bytes))

    def empty(self) -> None:
        """Frees what `fill` took."""
        self._filler.unlink(missing_ok=True)

    def slow(self, seconds: float) -> None:
        """Lets writes through for a fifth of the time. The loop ends by itself, even if this process is killed."""
        rounds = int(seconds / (FREEZE_SECONDS + THAW_SECONDS))
        step = f"fsfreeze -f {self.mount}; sleep {FREEZE_SECONDS}; fsfreeze -u {self.mount}; sleep {THAW_SECONDS}"
        script = f"i=0; while [ $i -lt {rounds} ]; do i=$((i+1)); {step}; done"
        self._slowing = subprocess.Popen(["sh", "-c", script], stderr=subprocess.DEVNULL)

    def restore_speed(self) -> None:
        """Waits for the end of `slow`."""
        if self._slowing is not None:
            self._slowing.wait(60)

    def close(self) -> None:
        """Unmounts the file system; a plain folder stays."""
        self.restore_speed()
        if self.missing is None:
            subprocess.run(["umount", str(self.mount)], check=True, timeout=60)
            self._image.unlink()

    def _mount(self) -> str | None:
        if os.geteuid() != 0 or any(shutil.which(tool) is None for tool in ("mkfs.ext4", "fsfreeze")):
            return "root, mkfs.ext4 and fsfreeze are needed to mount a volume of its own"
        with self._image.open("wb") as file:
            file.truncate(SIZE_BYTES)
        # -m 0: no blocks are kept for root, who runs these processes
        for command in (["mkfs.ext4", "-q", "-m", "0"], ["mount", "-o", "loop"]):
            target = [str(self.mount)] if command[0] == "mount" else []
            done = subprocess.run([*command, str(self._image), *target], capture_output=True, text=True, check=False, timeout=60)  # fmt: skip
            if done.returncode != 0:
                self._image.unlink()
                return f"{command[0]} fails: {done.stderr.strip()[:200]}"
        return None
