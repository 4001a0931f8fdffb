# One entry for people and for CI. Needs Debian 12 or 13, root, and a Rust toolchain.

enter := $(CURDIR)/tests/testbed/enter
test_features := fault-points

.PHONY: build demo examples test check bench testbed

build:
	cargo build --release --locked

# Each shows one thing that can be done with open files at a restore.
examples: build workloads testbed
	for example in ping second-instance other-input cluster; do \
	    $(enter) examples/$$example/run || exit 1; \
	done

demo: build workloads testbed
	$(enter) examples/main-job/run

# The last line that this prints counts the tests.
test: check testbed
	cargo build --workspace --features $(test_features) --locked
	@if tests/testbed/have-nextest; then \
	    cargo nextest run --features $(test_features) --locked; \
	else \
	    cargo test --features $(test_features) --locked -- --test-threads 2; \
	fi

check:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --features $(test_features) --locked -- -D warnings

bench: build workloads testbed
	$(enter) tests/bench/run

.PHONY: workloads
workloads:
	cargo build --release --locked -p workloads

# Makes the tree before anything is timed.
testbed:
	$(enter) true
