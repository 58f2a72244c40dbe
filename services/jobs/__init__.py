"""Jobs in Redis: submission, listing, events, execution and finalization. Only this package speaks RQ and Redis."""
