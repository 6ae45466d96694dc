#!/usr/bin/env bash
# The checks that need no run: format, vet, staticcheck.
set -euo pipefail
cd "$(dirname "$0")/.."
staticcheck=honnef.co/go/tools/cmd/staticcheck@v0.8.2

unformatted=$(gofmt -l cmd control daemon deploy overlay platform segment)
if [ -n "$unformatted" ]; then
  echo "not formatted (fix: make fmt):" >&2
  echo "$unformatted" >&2
  exit 1
fi
go vet ./...
go run "$staticcheck" ./...
