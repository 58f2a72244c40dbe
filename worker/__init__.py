"""Worker processes: they run the jobs of the queue."""
