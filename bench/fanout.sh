#!/usr/bin/env bash
# Builds what the fan-out comparison needs, installs the peers, and runs it; arguments go to bench/compare.py.
# BENCH_PROFILE=fast builds quicker; CARGO_TARGET_DIR is respected.
set -euo pipefail
cd "$(dirname "$0")/.."
profile="${BENCH_PROFILE:-release}"
packages=(-p ringway-loadgen -p ringway-floor)
servers="ringway,floor,bun"
arguments=("$@")
for ((i = 0; i < ${#arguments[@]}; i++)); do
  case "${arguments[i]}" in
    --servers=*) servers="${arguments[i]#*=}" ;;
    --servers) servers="${arguments[i + 1]:-}" ;;
  esac
done
[[ ",$servers," == *,ringway* ]] && packages+=(-p ringway)
BENCH_PROFILE="$profile" cargo build --profile "$profile" "${packages[@]}"
for peer in bun ws; do
  if [[ ",$servers," == *",$peer,"* ]]; then
    bench/peers/install.sh "$peer"
  fi
done
BENCH_PROFILE="$profile" exec python3 bench/compare.py "$@"
