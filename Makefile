.PHONY: dev test lint format

dev: ## Tallyman on this machine, with a private Redis and Postgres
	@scripts/setup && exec cargo run --release -- dev

test: ## every test
	@scripts/setup test && exec cargo test

lint: ## what a change must pass besides the tests
	@scripts/setup
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --document-private-items

format: ## the one formatting
	@cargo fmt
