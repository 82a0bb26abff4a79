# The relay in an image: one program, not root, nothing it writes to.
#
#   docker build -t outbox-relay .                                     # from source
#   docker build -t outbox-relay --target prebuilt -f Dockerfile DIR   # from DIR/outbox-relay
#
# `prebuilt` takes a release build for this architecture whose glibc is no newer than that of the
# runtime image (Debian 12's, as it stands); its build context is a directory with the program in it.
#
# Both base images are arguments, for machines that reach no registry: `tests/images base` makes a
# runtime image out of a Debian machine's own files.
#
#   docker build --build-arg RUNTIME_IMAGE=outbox-relay-base:local …
#
# What the runtime image has to have: glibc, libgcc and ca-certificates. OpenSSL, zlib, zstd and
# librdkafka are in the program. It is not linked with musl: names are resolved as the rest of the
# machine resolves them, and glibc's allocator is the one the figures were measured with.
ARG BUILDER_IMAGE=rust:1.95-slim-bookworm
ARG RUNTIME_IMAGE=debian:12.12-slim

FROM ${RUNTIME_IMAGE} AS runtime
LABEL org.opencontainers.image.title="outbox-relay" \
      org.opencontainers.image.description="Publishes the rows of a Postgres outbox table to Kafka" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0"
# a number, so that Kubernetes can tell that it is not root
USER 65532:65532
EXPOSE 9464
# the first SIGTERM stops gently, for relay.drain_timeout at most
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/outbox-relay"]
CMD ["run"]

FROM runtime AS prebuilt
COPY outbox-relay /usr/local/bin/outbox-relay

FROM ${BUILDER_IMAGE} AS builder
# for librdkafka and OpenSSL; an image that has them needs no network for it
RUN command -v cc make perl python3 >/dev/null || { apt-get -q update \
    && apt-get -q install -y --no-install-recommends gcc g++ libc6-dev make perl python3 \
    && rm -rf /var/lib/apt/lists/*; }
WORKDIR /build
ENV CARGO_INCREMENTAL=0
# Without the demo, which would bring a downloader of PostgreSQL. `top,otlp` for traces.
ARG FEATURES=top
# The dependencies first: this layer stays until Cargo.lock changes.
COPY Cargo.toml Cargo.lock ./
RUN mkdir -p src tests && echo 'fn main() {}' | tee src/main.rs >tests/main.rs && touch src/lib.rs \
    && cargo build --locked --release --no-default-features --features "$FEATURES"
COPY build.rs ./
COPY migrations migrations
COPY src src
# newer than what stood for it above
RUN touch src/main.rs src/lib.rs \
    && cargo build --locked --release --no-default-features --features "$FEATURES" \
    && strip --strip-debug -o /outbox-relay target/release/outbox-relay

FROM runtime AS relay
COPY --from=builder /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=builder /outbox-relay /usr/local/bin/outbox-relay
