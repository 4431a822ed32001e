# Every command sets up what it needs and leaves nothing running.
.DEFAULT_GOAL := help
SHELL := /bin/bash
export CARGO_TERM_COLOR ?= auto
# Debian keeps servers where an ordinary user's PATH does not look.
export PATH := $(PATH):/usr/local/sbin:/usr/sbin:/sbin

.PHONY: help demo test test-all e2e faults compat bench image fuzz audit check fmt lint doc tools clean

help: ## list the commands
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/\1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 10

demo: tools ## the main job on real servers, until Ctrl-C; ONCE=1 ends by itself
	@cargo build --locked
	@ONCE="$(ONCE)" scripts/demo.sh

test: tools ## the Rust tests, on a real Redis and a real NATS that they start themselves
	@if cargo nextest --version >/dev/null 2>&1; then \
		echo "cargo nextest run --locked"; cargo nextest run --locked; \
	else \
		echo "cargo test --locked --lib --bins --tests"; cargo test --locked --lib --bins --tests; \
	fi
	cargo test --locked --doc
	cargo test --locked --test faults -- --quick
	cargo test --locked --test faults -- --quick --privileges

test-all: ## the other checks (tests/*/run): manifests, image, ..., and those of make test on newer servers; installs its tools itself
	@scripts/test-all.sh $(ONLY)

e2e: ## hookgate on the cluster of KUBECONFIG, disturbed under load; E2E_WAY=overlay|chart|production, E2E_ONLY=...; see tests/e2e/main.py
	@python3 tests/e2e/main.py

faults: ## kill, freeze and cut off real processes under load, then count; ONLY="storm --minutes 25" for some
	@scripts/ensure-tools.sh faults
	cargo test --locked --features failpoints --test faults -- $(ONLY)

image: ## the image hookgate:VERSION, with docker, podman or buildah; IMAGE=registry/name:tag, HOOKGATE_ENGINE=...
	@scripts/image.sh

compat: ## the contract's tests over several versions of NATS and Redis, and a table; ONLY=part-of-a-name; in no other command
	@tests/servers/compat $(ONLY)

bench: ## measure hookgate, its floor and its baselines; QUICK=1: whether it works. See bench/README.md
	@bench/run

fuzz: ## fuzz every target for SECONDS=60, guided by coverage; ONLY=batch for one
	@FUZZ_SECONDS="$(or $(SECONDS),60)" scripts/fuzz.sh $(ONLY)

audit: ## licences, known vulnerabilities, a binary that lists its crates, and the list as CycloneDX; slow
	@scripts/audit.sh

check: fmt lint doc ## fmt, lint and doc

fmt: ## whether the code is formatted
	cargo fmt --check

lint: tools ## clippy, without and with all features, warnings denied
	cargo clippy --locked --all-targets -- -D warnings
	cargo clippy --locked --all-targets --all-features -- -D warnings
	cargo clippy --locked --all-features --test faults --test edge_load -- -D warnings

doc: tools ## the documentation, warnings denied
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps

tools: ## install what is missing of Redis, NATS, curl and a C compiler, from Debian's packages
	@scripts/ensure-tools.sh

clean: ## remove what was built
	cargo clean
