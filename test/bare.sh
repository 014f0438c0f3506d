#!/usr/bin/env bash
# Runs `npm ci && npm test` in a fresh clone of HEAD, as on a machine with only Node. Hides Chromium, PostgreSQL, openssl, curl
# and git: bind-mounts an empty file over each in a private mount namespace. Needs root on Linux.
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
env --unset=CHROMIUM_PATH --unset=PG_BIN bash -c 'npm ci && npm test && npm run test:long -- test/replicas/roster.test.ts'
