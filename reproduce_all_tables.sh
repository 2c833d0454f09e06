#!/usr/bin/env bash
# Reproduces every table: installs what is missing, runs what is missing, writes results/tables.
# Takes the words and options of `normbench reproduce`, e.g. preset=paper data=/data --jobs 2.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
packaging/setup.sh
exec .venv/bin/normbench reproduce --all "$@"
