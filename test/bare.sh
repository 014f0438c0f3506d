#!/usr/bin/env bash
# Runs the README's test command where there is nothing but Node: in an empty clone, with the programs that a machine may lack
# hidden. A mount of an empty file hides each, in a namespace of its own. Needs root and Linux.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
if [ "${1:-}" != inside ]; then
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  git clone --quiet "$root" "$work/clone"
  touch "$work/empty"
  chmod +x "$work/empty"
  unshare --mount bash "$work/clone/test/bare.sh" inside "$work"
  exit
fi
work=$2
for program in chromium chromium-browser google-chrome openssl curl git psql; do
  IFS=: read -ra directories <<<"$PATH"
  for directory in "${directories[@]}"; do
    if [ -e "$directory/$program" ]; then mount --bind "$work/empty" "$(readlink -f "$directory/$program")"; fi
  done
done
for program in /usr/lib/postgresql/*/bin/*; do
  if [ -e "$program" ]; then mount --bind "$work/empty" "$program"; fi
done
cd "$work/clone"
env --unset=CHROMIUM_PATH --unset=PG_BIN bash -c 'npm ci && npm test'
