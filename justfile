# What CI runs, and what it is handy to have. `just` lists it.

default:
    @just --list

# formatting, lints, documentation
check:
    .ci/run fmt clippy docs

# all tests, on servers in containers or without Docker
test *ARGS:
    cargo test {{ARGS}}

# the faults again and again, for hours if you let it: each time with another seed
soak *ARGS:
    OUTBOX_TEST_SOAK=1 cargo test --test main {{ARGS}}

# how fast, on servers of its own: `just bench`, `just bench drain steady/500x1`, `just bench --list`. The relay
# that is measured is the release build; the suite is built with the tests' profile, but as optimised, with all that is
# under it, for its own reading and producing (`ceiling`, `bare`) is what the relay's is measured against
bench *ARGS:
    cargo build --locked --release
    CARGO_PROFILE_DEV_OPT_LEVEL=3 cargo bench --locked --profile dev --config 'profile.dev.package."*".opt-level=3' --bench suite -- {{ARGS}}

# lets a fuzzer loose on `config` or `row`; wants nightly Rust and cargo-fuzz. No sanitizer: the code is
# safe Rust, and librdkafka's configure does not get along with one
fuzz TARGET *ARGS:
    mkdir -p fuzz/corpus/{{TARGET}}
    cargo +nightly fuzz run -s none {{TARGET}} fuzz/corpus/{{TARGET}} fuzz/seeds/{{TARGET}} {{ARGS}}

# what the program is made of, written anew: after every change of Cargo.lock
sbom:
    OUTBOX_SBOM_WRITE=1 cargo test --test main supply::

# licences, sources, bans and known faults of what the program is made of; wants cargo-deny and the network
deny:
    cargo deny --locked check

# everything CI does
ci *STEPS:
    .ci/run {{STEPS}}

# real events, from one command
demo *ARGS:
    cargo run --release -- demo {{ARGS}}

# four services that agree by events, killed while they do: examples/shop/README.md
shop *ARGS:
    cargo build --locked --release
    cargo run --locked --release --example shop --features consumer -- --relay "${CARGO_TARGET_DIR:-target}/release/outbox-relay" --chaos {{ARGS}}

# images for the tests where no registry can be reached
images:
    tests/images

# a Postgres and a Kafka to try things on
up:
    docker compose up -d --wait

down:
    docker compose --profile demo down

# everything at once, to look at: a service that writes, a relay, Prometheus, Grafana
show:
    docker compose --profile demo up -d --wait --build

# the relay in an image, from source
image:
    docker build -t outbox-relay:local .
