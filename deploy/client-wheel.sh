#!/usr/bin/env bash
# Installs the client's distribution alone into a fresh environment and checks it: one importable name, no part of the
# service, a command that works, and a clear message of those that need the service.
#
# PYTHON is the interpreter to use (.venv/bin/python).
set -euo pipefail
cd "$(dirname "$0")/.."

readonly PYTHON=${PYTHON:-.venv/bin/python}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
unset PYTHONPATH

"$PYTHON" -m venv "$folder/venv"
cp -r client "$folder/client"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check -c constraints.txt "$folder/client"

cd "$folder"
venv/bin/python - <<'PYTHON'
import asyncio
from importlib import import_module
from importlib.metadata import files
from importlib.util import find_spec

import graftwerk

names = {path.parts[0] for path in files("graftwerk") if not path.parts[0].startswith("..")}
names = {name for name in names if not name.endswith(".dist-info")}
assert names == {"graftwerk"}, names
present = [name for name in ("torch", "flask", "redis", "rq", "supervisor", "api", "services", "worker") if find_spec(name)]
assert not present, present
assert graftwerk.Client("http://127.0.0.1:9").is_ready() is False


async def is_ready() -> bool:
    async with graftwerk.AsyncClient("http://127.0.0.1:9") as client:
        return await client.is_ready()


assert asyncio.run(is_ready()) is False
for module in ("chat.editor", "commands"):
    import_module(f"graftwerk.{module}")
PYTHON

venv/bin/graftwerk --help >help
venv/bin/python -m graftwerk --help | cmp - help
for command in serve demo; do
  if venv/bin/graftwerk "$command" >out 2>err; then
    echo "client-wheel: $command must fail without the service" >&2
    exit 1
  fi
  grep -q 'graftwerk-service is not installed' err || { cat out err >&2; exit 1; }
done
echo "client-wheel: the client works alone"
