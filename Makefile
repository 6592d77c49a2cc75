.PHONY: dev demo test faults bench lint audit format

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
	@scripts/setup && cargo build --profile fast --workspace --bins && \
		exec "$${CARGO_TARGET_DIR:-target}/fast/bench" faults $(if $(SEED),--seed $(SEED)) $(if $(MINUTES),--minutes $(MINUTES))

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
