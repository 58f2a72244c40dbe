"""Jobs: what may be asked for, where a job stands, and the only room that speaks RQ and Redis."""
