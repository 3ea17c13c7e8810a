#!/usr/bin/env bash
# Builds what rolling restarts of a fleet need, installs Redis and HAProxy where they are missing, and runs them under load;
# arguments go to bench/rolling.py. BENCH_PROFILE=fast builds quicker; CARGO_TARGET_DIR is respected.
set -euo pipefail
cd "$(dirname "$0")/.."
profile="${BENCH_PROFILE:-release}"
cargo build --profile "$profile" -p ringway -p ringway-loadgen
for program in redis-server haproxy; do
    command -v "$program" >/dev/null || [ -x "/usr/sbin/$program" ] || { tests/sdk/install.sh; break; }
done
BENCH_PROFILE="$profile" exec python3 bench/rolling.py "$@"
