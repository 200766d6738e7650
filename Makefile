# What is tested and how is said by .ci/run; these are shorthands.

GO      ?= go
MODULES := ./... ./bench/... ./examples/...
BENCH   ?= .
COUNT   ?= 6

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
	@$(GO) test -list '^TestR[0-9]' ./... | sed -n '/^TestR/p' | sort -V

.PHONY: bench
bench: ## measure beside gVisor and the kernel, in one run
	$(GO) run ./bench

.PHONY: bench-compare
bench-compare: ## benchmark now, and compare with the last bench-compare (BENCH=regexp COUNT=n)
	@mkdir -p bin
	@if [ -f bin/bench.new.out ]; then mv bin/bench.new.out bin/bench.old.out; fi
	$(GO) test ./bench ./internal/epoch ./vmarea -run '^$$' -bench '$(BENCH)' -count $(COUNT) | tee bin/bench.new.out
	@if [ -f bin/bench.old.out ]; then \
		$(GO) run golang.org/x/perf/cmd/benchstat@v0.0.0-20260908200009-22c9c6c9d4da bin/bench.old.out bin/bench.new.out; \
	else echo "kept as the base; run it again after the change"; fi

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
