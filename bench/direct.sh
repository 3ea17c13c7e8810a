#!/usr/bin/env bash
# Builds what the comparison of direct messages needs, installs Bun, and runs it; arguments go to bench/direct.py.
# BENCH_PROFILE=fast builds quicker; CARGO_TARGET_DIR is respected.
set -euo pipefail
cd "$(dirname "$0")/.."
profile="${BENCH_PROFILE:-release}"
cargo build --profile "$profile" -p ringway -p ringway-loadgen -p ringway-floor
if [[ ! -d bench/peers/bun/node_modules/bun ]]; then
  npm install --prefix bench/peers/bun --no-package-lock --no-audit --no-fund --loglevel=error
fi
BENCH_PROFILE="$profile" exec python3 bench/direct.py "$@"
