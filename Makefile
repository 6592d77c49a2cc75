.PHONY: dev test bench lint audit format

dev: ## Tallyman on this machine, with a private Redis and Postgres
	@scripts/setup && exec cargo run --release -- dev

test: ## every test
	@scripts/setup test && exec cargo test --workspace

bench: ## how fast it is, measured with a Redis and a Postgres of its own
	@scripts/setup && cargo build --release --workspace && exec "$${CARGO_TARGET_DIR:-target}/release/bench" suite

lint: ## what a change must pass besides the tests
	@scripts/setup
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items
	@scripts/audit

audit: ## whether dependencies are what deny.toml allows
	@scripts/audit install

format: ## the one formatting
	@cargo fmt --all
