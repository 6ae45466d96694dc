#!/usr/bin/env bash
# Runs every fuzz target for the number of runs or the time given, one after another.
set -euo pipefail
cd "$(dirname "$0")/.."
time=${1:?usage: fuzz.sh RUNS|TIME, like 20000x or 3s}

grep -rlE '^func Fuzz' --include='*_test.go' . | xargs -n1 dirname | sort -u | while read -r dir; do
  grep -hoE '^func Fuzz[A-Za-z0-9_]+' "$dir"/*_test.go | sed 's/^func //' | sort -u | while read -r target; do
    echo "fuzz $dir $target"
    go test -run '^$' -fuzz "^$target\$" -fuzztime "$time" -fuzzminimizetime 1x "$dir" </dev/null >/tmp/bulkhead-fuzz.$$ 2>&1 || { cat /tmp/bulkhead-fuzz.$$; rm -f /tmp/bulkhead-fuzz.$$; exit 1; }
    rm -f /tmp/bulkhead-fuzz.$$
  done
done
