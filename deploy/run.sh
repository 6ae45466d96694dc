#!/usr/bin/env bash
# Starts a mesh on this machine, with its state under build/run, and shows what to type next. Again: shows the
# one that runs. `deploy/run.sh stop` ends it and takes its rules out of the kernel.
set -euo pipefail
cd "$(dirname "$0")/.."
dir=$PWD/build/run
bulkhead=("$PWD/bin/bulkhead" --state-dir "$dir/state" --socket "$dir/bulkhead.sock")

# The number alone may be another program's by now. A binary that was built anew reads "… (deleted)".
running() { [ -f "$dir/pid" ] && [[ "$(readlink "/proc/$(cat "$dir/pid")/exe")" == "${bulkhead[0]}"* ]]; }

stop() {
  if running; then
    kill "$(cat "$dir/pid")"
    tail --pid="$(cat "$dir/pid")" -f /dev/null
  fi
  rm -f "$dir/pid"
  [ ! -f "$dir/state/host.db" ] || "${bulkhead[@]}" down
}

start() {
  mkdir -p -m 0700 "$dir"
  [ -f "$dir/state/host.db" ] || "${bulkhead[@]}" init --mesh demo.internal --name h1
  setsid "${bulkhead[@]}" daemon >>"$dir/daemon.log" 2>&1 </dev/null &
  echo $! >"$dir/pid"
}

wait_ready() {
  for _ in $(seq 300); do
    "${bulkhead[@]}" status -o json 2>/dev/null | grep -q '"phase": *"ready"' && return
    running || break
    sleep 0.1
  done
  echo "the daemon is not ready; its log ends with:" >&2
  tail -n 5 "$dir/daemon.log" >&2
  exit 1
}

[ "$(id -u)" -eq 0 ] || { echo "run as root: the daemon makes an interface and firewall rules" >&2; exit 1; }
[ "${1:-}" != stop ] || { stop; exit; }
running || start
wait_ready
"${bulkhead[@]}" status
cat <<TXT

Next, type:
  ${bulkhead[*]} token create --grant function=plan,sensitivity=internal
  ${bulkhead[*]} policy apply -f deploy/policy.example.yaml --wait
  ${bulkhead[*]} host list
TXT
