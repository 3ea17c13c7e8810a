#!/usr/bin/env bash
# Puts peers where the benches look for them: install.sh [--again] bun|ws|nats|nchan ...
# bun and ws come from npm, into node_modules beside their server. nats-server and nginx with nchan come from Debian's
# archive; the packages are only unpacked beside their configuration (folder `unpacked`), so that nothing is installed in the system
# and nothing is started; only /var/lib/nginx is made, which nchan needs. One that cannot be had is named, and left out; that is no error.
set -euo pipefail
cd "$(dirname "$0")"
again=false

from_npm() {
  $again && rm -rf "$1/node_modules"
  [[ -d "$1/node_modules/$1" ]] && return
  npm install --prefix "$1" --no-package-lock --no-audit --no-fund --loglevel=error
}

# from_debian PEER PROGRAM PACKAGE...
from_debian() {
  local peer="$1" program="$2" packages folder
  shift 2
  $again && rm -rf "$peer/unpacked"
  [[ -x "$peer/unpacked/$program" ]] && return
  folder="$(mktemp -d)"
  packages=0
  if (cd "$folder" && apt-get -q download "$@" >/dev/null 2>&1); then
    rm -rf "$peer/unpacked"
    for package in "$folder"/*.deb; do
      dpkg -x "$package" "$peer/unpacked" && packages=$((packages + 1))
    done
  fi
  rm -rf "$folder"
  [[ "$packages" == "$#" ]] && "$peer/unpacked/$program" -v >/dev/null 2>&1
}

for peer in "$@"; do
  case "$peer" in
    --again) again=true ;;
    bun | ws) from_npm "$peer" || echo "peer $peer: not to be had from npm; it is left out" >&2 ;;
    nats) from_debian nats usr/sbin/nats-server nats-server || echo "peer nats: no nats-server (apt-get update?); it is left out" >&2 ;;
    # The module makes a folder below this one, whatever its configuration says.
    nchan) { from_debian nchan usr/sbin/nginx nginx libnginx-mod-nchan && mkdir -p /var/lib/nginx; } || echo "peer nchan: no nginx with nchan (apt-get update?); it is left out" >&2 ;;
    *) echo "unknown peer $peer: bun, ws, nats, nchan" >&2; exit 1 ;;
  esac
done
