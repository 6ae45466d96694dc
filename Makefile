# Bulkhead. `make help` lists the targets.
SHELL := /bin/bash
GO ?= go
VERSION := $(shell git describe --always --dirty --tags 2>/dev/null || echo unknown)
BINARY := bin/bulkhead
# A number of runs, not a time: when a time ends Go may report a failure that is none (golang/go issue 75804).
FUZZTIME ?= 20000x
export CGO_ENABLED ?= 0

.PHONY: help deps build run demo test bench fuzz soak lint fmt clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

deps: ## install the Debian packages that are missing
	@.ci/deps.sh

build: ## build the static binary bin/bulkhead
	$(GO) build -trimpath -ldflags '-s -w -X main.buildVersion=$(VERSION)' -o $(BINARY) ./cmd/bulkhead

run: deps build ## start a mesh on this machine, or show the one that runs
	@deploy/run.sh

demo: deps build ## show a mesh of five hosts in network namespaces
	$(GO) run ./deploy/lab/demo -binary $(BINARY)

test: deps build lint ## fuzz each target for FUZZTIME, then run all tests
	@.ci/fuzz.sh $(FUZZTIME)
	CGO_ENABLED=1 $(GO) test -race -timeout 15m ./...

bench: deps build ## measure; ratios against a baseline of the same run
	$(GO) test -run '^$$' -bench . -benchtime 1s ./segment ./platform ./overlay/...
	$(GO) run ./deploy/lab/bench -binary $(BINARY)

fuzz: ## fuzz every target for FUZZTIME runs or time, like make fuzz FUZZTIME=5m
	@.ci/fuzz.sh $(FUZZTIME)

soak: deps build ## the long tests: more random policies, more kills
	BULKHEAD_SOAK=1 CGO_ENABLED=1 $(GO) test -race -timeout 3h -count=1 ./deploy/lab/...

lint: ## gofmt, vet and staticcheck
	@.ci/lint.sh

fmt: ## format the code
	gofmt -w cmd control daemon deploy overlay platform segment

clean: ## remove what was built; `deploy/run.sh stop` first ends the mesh of make run
	rm -rf bin build
