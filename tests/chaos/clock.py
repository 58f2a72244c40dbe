"""Steps of the clock that all processes see: a preloaded library adds an offset from a file to the real time."""

import shutil
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("clock_step.c")


class Clock:
    """The offset of the processes' clock; `missing` is the reason why there is none, or None."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "clock-offset"
        self.library = folder / "clock_step.so"
        self.missing = self._build()
        self.step(0)

    @property
    def environment(self) -> dict[str, str]:
        """Variables that preload the library."""
        if self.missing is not None:
            return {}
        return {"LD_PRELOAD": str(self.library), "CHAOS_CLOCK_FILE": str(self.file)}

    def step(self, seconds: int) -> None:
        """Sets the offset from the machine's clock, in one rename: no process reads half a number."""
        written = self.file.with_suffix(".new")
        written.write_text(str(seconds))
        written.rename(self.file)

    def _build(self) -> str | None:
        compiler = shutil.which("cc")
        if compiler is None:
            return "no C compiler (cc) is installed"
        command = [compiler, "-O2", "-shared", "-fPIC", "-o", str(self.library), str(SOURCE)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        return None if done.returncode == 0 else f"clock_step.c is not compiled: {done.stderr[:200]}"
