# syntax=docker/dockerfile:1
# The version of Rust is `rust-version` in Cargo.toml; a test compares them.
FROM rust:1.94-slim-bookworm AS build
WORKDIR /build
COPY Cargo.toml Cargo.lock ./
COPY migrations migrations
COPY lua lua
COPY assets assets
COPY templates templates
COPY src src
COPY servers servers
COPY bench bench
# The caches keep compiled dependencies between builds. Their artifacts may be newer than sources that were checked out
# earlier, so that cargo would not rebuild those; hence `touch`.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/build/target \
    find src servers lua migrations -type f -exec touch {} + \
    && cargo build --release --locked --package tallyman \
    && cp target/release/tallyman /usr/local/bin/tallyman

FROM debian:bookworm-slim
# For TLS to Redis and Postgres.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /usr/local/bin/tallyman /usr/local/bin/tallyman
USER 10001:10001
ENV TALLYMAN_LISTEN=0.0.0.0:7400 TALLYMAN_LOG_FORMAT=json
EXPOSE 7400
# The timeout is longer than that of `tallyman healthcheck`.
HEALTHCHECK --interval=10s --timeout=8s --start-period=30s --retries=3 CMD ["tallyman", "healthcheck"]
ENTRYPOINT ["tallyman"]
CMD ["serve"]
