"""Speed and memory as ratios within one run: `python -m bench`, or `make bench`. Needs 25 GB of disk."""
