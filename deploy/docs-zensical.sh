#!/usr/bin/env bash
# Builds the documentation with zensical, the successor of MkDocs Material, from the same mkdocs.yml, and checks the result.
set -euo pipefail

cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/bin/python}
ENVIRONMENT=build/zensical

"$PYTHON" -m venv "$ENVIRONMENT"
"$ENVIRONMENT/bin/python" -m pip install --quiet --disable-pip-version-check zensical==0.0.73 mkdocstrings-python==2.0.11
"$PYTHON" deploy/docs_site.py
"$ENVIRONMENT/bin/zensical" build --clean --strict
"$PYTHON" deploy/docs_check.py site
