.PHONY: dev demo test test-cluster faults fuzz bench lint audit format

dev: ## run Tallyman on this machine, with a private Redis and Postgres
	@scripts/setup
	@[ -e "$${CARGO_TARGET_DIR:-target}/fast/tallyman" ] || \
		echo "Building Tallyman and its dependencies: about four minutes on two cores this first time, seconds after a change …"
	@exec cargo run --profile fast -- dev

demo: ## fill a running `make dev` with a year of invented usage
	@exec cargo run --quiet --profile fast -- demo

test: ## run all tests
	@scripts/setup test && cargo test --workspace && exec npm test

# What needs one server: a copy of its data, a proxy in front of it, its keys side by side, or nothing of Redis at all.
ONE_SERVER = admission:: bench:: clusters:: dashboard dev:: documents:: exactly_once:: faults:: fuzz:: model:: overload:: pool:: \
	replicas:: restore:: shared_policies:: structure:: tidy:: words:: \
	adjustments::a_rollback deletion::a_deletion_whose_redis deletion::a_rollback deletion::an_older_copy doctor::each_server \
	gc::a_counter_of_an_older gc::one_instance idempotency::after_an_unknown interrupted_changes::a_change_that_was_never \
	patching::a_change_of_calendar_whose patching::a_patch_whose plans::a_plan_edited_while plans::an_edited_plan_is_announced \
	problems::a_reply_that_is_lost recovery::frozen_lost recovery::recovering_a_thousand resets::a_reset_is_finished_even \
	protocol::nothing_acknowledged thresholds::a_crossing_found usage::a_rollback

test-cluster: ## run the integration tests on a Redis Cluster, and those of failovers; TESTS=… for a part
	@scripts/setup test
	TALLYMAN_TEST_CLUSTER=1 cargo test --test it -- --test-threads=6 $(addprefix --skip ,$(ONE_SERVER)) $(TESTS)
	$(if $(TESTS),,cargo test --test it -- clusters:: replicas::)

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
