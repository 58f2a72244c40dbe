"""Colors of the statuses of jobs."""

COLOR_OF = {"queued": "dim", "running": "cyan", "succeeded": "green", "failed": "red", "canceled": "yellow"}
