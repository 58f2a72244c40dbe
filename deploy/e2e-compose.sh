#!/usr/bin/env bash
# Builds the images, starts the services as a separate compose project and runs the end-to-end tests against it.
# Removes all containers and volumes afterwards. Arguments are passed to pytest.
#
#   deploy/e2e-compose.sh [-k 'some test']
#
# GRAFTWERK_E2E_PORT is the port to publish on loopback (18431); PYTHON the interpreter that has pytest.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly PROJECT=graftwerk-e2e
readonly PORT=${GRAFTWERK_E2E_PORT:-18431}
readonly PYTHON=${PYTHON:-.venv/bin/python}

# Three workers on few cores: more threads than cores are many times slower than one thread per worker.
export GRAFTWERK_TORCH_THREADS=${GRAFTWERK_TORCH_THREADS:-1}

compose() { GRAFTWERK_PORT=$PORT docker compose -p "$PROJECT" -f docker-compose.yml "$@" </dev/null; }
say() { printf 'e2e-compose: %s (%s s)\n' "$1" "$SECONDS"; }

finish() {
  local status=$?
  if ((status)); then
    compose ps --all || true
    compose logs --no-color --tail 80 || true
  fi
  compose down --volumes --remove-orphans --timeout 20 || status=1
  say "ended with $status"
  exit "$status"
}
trap finish EXIT

docker info >/dev/null 2>&1 || { echo 'e2e-compose: no Docker engine responds' >&2; trap - EXIT; exit 1; }
compose down --volumes --remove-orphans --timeout 5 >/dev/null 2>&1
compose build --quiet
say 'images built'
compose up --detach --wait --wait-timeout 180
say 'the services are up'
compose images

GRAFTWERK_E2E_URL=http://127.0.0.1:$PORT GRAFTWERK_E2E_COMPOSE=$PROJECT \
  "$PYTHON" -m pytest tests/e2e -p no:cacheprovider "$@"
