# Plain `make` lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
BINARIES := floatip-webhook floatip-sidecar floatip-agent
BIN := $(CURDIR)/bin
GOFLAGS_STATIC := -trimpath -ldflags '-s -w -X floatip.io/floatip.revision=$(VERSION)'

include test/rig.mk

##@ Targets

.PHONY: help
help: ## list the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-zA-Z_-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## build the static binaries into bin/ (GOARCH=arm64 for the other architecture)
	@mkdir -p $(BIN)
	@for binary in $(BINARIES); do \
		CGO_ENABLED=0 go build $(GOFLAGS_STATIC) -o $(BIN)/$$binary ./cmd/$$binary; \
	done

.PHONY: test
test: packages lint build rig-binaries ## every test: lint, unit, bbolt, admission on the wire, namespaces, the rig (root)
	@test/run-tests unit
	@test/run-tests rig

.PHONY: test-unit
test-unit: packages build rig-binaries ## the tests without a rig: unit, bbolt, wire, namespaces (root)
	@test/run-tests unit

.PHONY: test-rig
test-rig: packages build rig-binaries ## the tests on the real control plane (root)
	@test/run-tests rig

.PHONY: demo
demo: packages build rig-binaries ## vm.yaml from kubectl apply to an answer on the provider LAN (root); KEEP=1 leaves it up
	@go build -o $(BIN)/rig/demo ./test/demo
	@$(BIN)/rig/demo $(if $(KEEP),--keep)

.PHONY: demo-down
demo-down: ## remove what demo KEEP=1 left up
	@go build -o $(BIN)/rig/demo ./test/demo
	@$(BIN)/rig/demo --down

.PHONY: bench
bench: packages build rig-binaries ## benchmarks; figures are ratios beside a limit measured in the same run
	@test/run-tests bench

.PHONY: migrations
migrations: packages build rig-binaries ## 50 live migrations of a real guest in a row, with its connections (root)
	@test/run-tests migrations

.PHONY: lint
# As the programs are built: with an empty build cache, what they and the linters need is compiled once.
lint: export CGO_ENABLED := 0
lint: export GOFLAGS := -trimpath
lint: ## gofmt, go vet, staticcheck, also of the rig; no large file is tracked
	@unformatted=$$(gofmt -l $$(git ls-files --cached --others --exclude-standard '*.go')); \
	if [ -n "$$unformatted" ]; then echo "gofmt would change:"; echo "$$unformatted"; exit 1; fi
	@large=$$(git ls-files -z | xargs -0 sh -c 'find "$$@" -maxdepth 0 -size +256k' -); \
	if [ -n "$$large" ]; then echo "tracked, and over 256 KiB; a built program?"; echo "$$large"; exit 1; fi
	@mkdir -p $(BIN) && go build -o $(BIN)/staticcheck honnef.co/go/tools/cmd/staticcheck
	@for module in . test/kubevirt test/kubevirt19 test/certmanager; do (cd $$module && go vet ./... && $(BIN)/staticcheck ./...); done
	@go vet -tags secondkernel ./nat/node && $(BIN)/staticcheck -tags secondkernel ./nat/node

.PHONY: generate
generate: ## CRDs and deep-copy functions from ipam/v1alpha1
	go tool controller-gen object crd:maxDescLen=0 paths=./ipam/v1alpha1 output:crd:dir=manifests/crds

.PHONY: packages
packages: ## install the Debian packages that tests and demo need, or say which are missing
	@test/packages

.PHONY: clean
clean: ## remove what was built
	rm -rf $(BIN)
