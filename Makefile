# What is tested and how is said by .ci/run; these are shorthands.

GO      ?= go
MODULES := ./examples/... ./bench/... ./...
BENCH   ?= .

# The last result that was kept: the directories begin with their dates.
KEPT      = $(lastword $(sort $(wildcard bench/results/*/raw.txt)))
BENCHSTAT = v0.0.0-20260908200009-22c9c6c9d4da

.DEFAULT_GOAL := help

.PHONY: help
help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: test
test: ## all tests of all modules
	$(GO) test $(MODULES)

.PHONY: race
race: ## all tests under the race detector, which turns invariants on
	$(GO) test -race -timeout 8m $(MODULES)

.PHONY: invariants
invariants: ## the library's tests with its invariants checked
	$(GO) test -tags invariants ./...

.PHONY: rules
rules: ## list the tests that guard the rules (TestR1... to TestR15...)
	@$(GO) test -list '^TestR[0-9]' $(MODULES) | sed -n '/^TestR/p' | sort -V

.PHONY: bench
bench: ## measure beside gVisor, the kernel and plain C, in one run
	$(GO) run ./bench

.PHONY: bench-keep
bench-keep: ## the same, kept with its plots below bench/results
	$(GO) run ./bench -keep bench/results

.PHONY: bench-readme
bench-readme: ## have README.md quote the last result that was kept
	$(GO) run ./bench -readme README.md

.PHONY: bench-compare
bench-compare: ## measure now, and compare with the last kept result (BENCH=regexp)
	@test -n "$(KEPT)" || { echo "no result is kept below bench/results: make bench-keep makes one"; exit 1; }
	$(GO) run ./bench -out bin/bench -run '$(BENCH)'
	$(GO) run golang.org/x/perf/cmd/benchstat@$(BENCHSTAT) kept=$(KEPT) now=bin/bench/raw.txt

.PHONY: oracle
oracle: ## compare 100 000 operations of a fresh seed with the kernel
	$(GO) test ./guestmem -run '^TestOracle$$' -oracle.ops=100000 -v

.PHONY: ci
ci: ## what continuous integration runs
	.ci/run

.PHONY: fmt
fmt: ## format every file
	gofmt -w .

.PHONY: vet
vet: ## go vet, all modules
	$(GO) vet $(MODULES)

.PHONY: lint
lint: ## gofmt, vet and staticcheck, all modules
	.ci/run lint

.PHONY: clean
clean: ## remove what was built
	rm -rf bin
	$(GO) clean $(MODULES)
