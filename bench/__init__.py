"""Speed and memory as ratios within one run: `python -m bench weights|generate|batching`, or all by `make bench`."""
