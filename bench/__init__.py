"""Speed and memory as ratios within one run: `python -m bench weights|generate|batching|sharing`; `make bench` runs all."""
