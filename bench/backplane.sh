#!/usr/bin/env bash
# Measures the backplane's scripts at real engines; arguments go to bench/backplane.py.
set -euo pipefail
cd "$(dirname "$0")/.."
exec python3 bench/backplane.py "$@"
