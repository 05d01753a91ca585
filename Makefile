# make help lists the targets. Building needs Go and nothing else.

GO       ?= go
GOTEST   ?= $(GO) test
FUZZTIME ?= 1m
BENCH    ?= $(shell bin/failback-bench run -list | cut -d ' ' -f 1)
DEMO     ?=
SOAK     ?= 1h
VM       ?=

# The modules below this one, whose tests ./... does not reach.
MODULES := internal/embedtest

.PHONY: help build deps test check fmt vet staticcheck lint tidy race fuzz bench demo cover clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## build bin/failback
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/failback ./cmd/failback

deps: ## install what the tests use, where it is missing (Debian packages, as root)
	@.ci/deps

test: deps ## run every test; what the machine lacks is skipped and named (go test -v)
	$(GOTEST) $(TESTFLAGS) ./...
	@set -e; for m in $(MODULES); do (cd $$m && $(GOTEST) $(TESTFLAGS) ./...); done

check: fmt vet staticcheck lint ## formatting, vet, staticcheck, the shape of the code

fmt:
	@bad=$$(gofmt -l .); [ -z "$$bad" ] || { echo "not formatted, run gofmt -w on:"; echo "$$bad"; exit 1; }

vet:
	$(GO) vet ./...
	$(GO) vet -tags invariants ./...
	$(GO) vet -tags live ./cmd/...
	GOARCH=arm64 $(GO) vet ./...
	@set -e; for m in $(MODULES); do (cd $$m && $(GO) vet ./...); done

staticcheck:
	$(GO) tool staticcheck ./...
	$(GO) tool staticcheck -tags invariants ./...

lint:
	$(GO) test -count=1 ./internal/lint

tidy: ## bring go.mod and go.sum of every module up to date
	$(GO) mod tidy
	@set -e; for m in $(MODULES); do (cd $$m && $(GO) mod tidy); done

race: ## run the tests with the race detector and the invariants (needs a C compiler)
	@.ci/deps race
	$(GOTEST) -race -tags invariants -short -timeout 25m $(TESTFLAGS) ./...

fuzz: ## run every fuzz target, each for FUZZTIME (default 1m)
	@.ci/fuzz $(FUZZTIME)

bench: build ## run the benchmarks named in BENCH (default all; bin/failback-bench run -list)
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/failback-bench ./bench/cmd/failback-bench
	bin/failback-bench run -failback bin/failback $(BENCH)

demo: build ## play an outage and the way home (loop devices as root, else plain files)
	bin/failback demo $(DEMO)

.PHONY: test-vm test-live soak vuln bpf

bpf: ## build the kernel programs of cbt/ebpf again (needs clang, llvm-strip, libbpf-dev)
	cbt/ebpf/bpf/build

vuln: ## look for known holes in what is linked (needs its database, from the network)
	$(GO) run golang.org/x/vuln/cmd/govulncheck@latest ./...

test-vm: ## cut the power, lie, pull disks out, and track other devices in a guest (installs QEMU; VM="-cuts 200")
	$(GO) run ./internal/vmtest $(VM)

test-live: ## live syncs of file systems in use, killed and cut, on real devices (root; minutes; FAILBACK_LIVE=20 for as many of each)
	@.ci/deps
	$(GO) test -tags live -count=1 -timeout 60m $(TESTFLAGS) -run TestLive ./cmd/failback

soak: ## sync under writes and faults for SOAK (default 1h); see docs/TESTING.md
	$(GO) run ./internal/soak -for $(SOAK)

cover: ## run the tests and print what they cover
	$(GO) test -short -coverprofile=cover.out -coverpkg=./... ./...
	@$(GO) tool cover -func=cover.out | tail -n 1
	@echo "line by line: go tool cover -html=cover.out"

clean: ## remove what the targets above made
	rm -rf bin cover.out
