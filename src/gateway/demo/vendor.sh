#!/bin/sh
# Copies the SDK builds of the pinned version from npm into vendor/, or with --check compares them and fails when they
# differ. The copies are committed, so that a build needs no network and the binary embeds what was tested.
set -eu
cd "$(dirname "$0")"
version=$(node -p 'require("./package.json").dependencies.centrifuge')
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
npm pack --silent --pack-destination "$work" "centrifuge@$version" >/dev/null
tar -xzf "$work/centrifuge-$version.tgz" -C "$work"
for file in dist/centrifuge.js dist/centrifuge.protobuf.js LICENSE; do
  name=$(basename "$file")
  if [ "${1:-}" = "--check" ]; then
    cmp "$work/package/$file" "vendor/$name" || { echo "vendor/$name is not centrifuge@$version: run $0" >&2; exit 1; }
  else
    cp "$work/package/$file" "vendor/$name"
  fi
done
echo "centrifuge@$version"
