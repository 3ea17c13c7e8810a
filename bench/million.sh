#!/usr/bin/env bash
# Builds and measures a million idle connections and publications to all of them, beside the floor, in a network namespace of its own
# (root); arguments go to bench/million.py. BENCH_PROFILE=fast builds quicker; CARGO_TARGET_DIR is respected.
set -euo pipefail
cd "$(dirname "$0")/.."
[[ "$(id -u)" == 0 ]] || { echo "bench/million.sh makes a network namespace and needs root" >&2; exit 1; }
profile="${BENCH_PROFILE:-release}"
cargo build --profile "$profile" -p ringway -p ringway-floor -p ringway-loadgen
# Only namespaces made from now on have a table of this size; the host keeps its own, and gets its setting back.
before="$(sysctl -n net.ipv4.tcp_child_ehash_entries)"
# Publications that all clients have yet to read: with two million they were more than the kernel's own limits.
memory="$(sysctl -n net.ipv4.tcp_mem)"
trap 'sysctl -q -w net.ipv4.tcp_child_ehash_entries="$before" net.ipv4.tcp_mem="$memory"' EXIT
sysctl -q -w net.ipv4.tcp_child_ehash_entries=4194304 net.ipv4.tcp_mem="1000000 2000000 3000000"
BENCH_PROFILE="$profile" unshare -n python3 bench/million.py "$@"
