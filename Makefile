.PHONY: dev demo test faults fuzz bench lint audit format

dev: ## run Tallyman on this machine, with a private Redis and Postgres
	@scripts/setup
	@[ -e "$${CARGO_TARGET_DIR:-target}/fast/tallyman" ] || \
		echo "Building Tallyman and its dependencies: about four minutes on two cores this first time, seconds after a change …"
	@exec cargo run --profile fast -- dev

demo: ## fill a running `make dev` with a year of invented usage
	@exec cargo run --quiet --profile fast -- demo

test: ## run all tests
	@scripts/setup test && cargo test --workspace && exec npm test

faults: ## inject random faults under load, and audit everything; SEED=… MINUTES=…, 30 by default
	@scripts/setup && cargo build --profile faults --workspace --bins && \
		exec "$${CARGO_TARGET_DIR:-target}/faults/bench" faults $(if $(SEED),--seed $(SEED)) $(if $(MINUTES),--minutes $(MINUTES))

FUZZ_SECONDS ?= 600

fuzz: ## run each fuzz target for FUZZ_SECONDS, ten minutes by default; FUZZ_SEED repeats a failure
	@scripts/setup && FUZZ_SECONDS=$(FUZZ_SECONDS) exec cargo test --test it -- --nocapture --test-threads=1 fuzz::

bench: ## measure throughput and latency, with a private Redis and Postgres
	@scripts/setup && cargo build --release --workspace && exec "$${CARGO_TARGET_DIR:-target}/release/bench" suite

lint: ## check format, lints, rustdoc and dependencies
	@scripts/setup
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items
	@scripts/audit

audit: ## check dependencies against deny.toml
	@scripts/audit install

format: ## format all sources
	@cargo fmt --all
