"""The library: preflight, jobs, models, and all computation. See docs/architecture.md."""
