# Every command sets up what it needs and leaves nothing running.
.DEFAULT_GOAL := help
SHELL := /bin/bash
export CARGO_TERM_COLOR ?= auto

.PHONY: help demo test faults check fmt lint doc tools clean

help: ## list the commands
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 10

demo: tools ## the main job on real servers, until Ctrl-C; ONCE=1 ends by itself
	@cargo build --locked
	@ONCE=$(ONCE) scripts/demo.sh

test: tools ## all tests, on a real Redis and a real NATS that they start themselves
	@if cargo nextest --version >/dev/null 2>&1; then \
		echo "cargo nextest run"; cargo nextest run --locked; \
	else \
		echo "cargo test"; cargo test --locked --lib --bins --tests; \
	fi
	cargo test --locked --doc
	cargo test --locked --test faults -- --quick

faults: tools ## kill, freeze and cut off real processes under load, then count; a table
	cargo test --locked --features failpoints --test faults -- $(ONLY)

check: fmt lint doc ## format, lints and documentation, warnings denied

fmt:
	cargo fmt --check

lint: tools
	cargo clippy --locked --all-targets -- -D warnings
	cargo clippy --locked --all-targets --all-features -- -D warnings

doc: tools
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps

tools:
	@scripts/ensure-tools.sh

clean: ## remove what was built
	cargo clean
