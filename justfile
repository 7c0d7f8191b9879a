# The recipes of this project. On a fresh machine run them with `.ci/just RECIPE`, which installs
# what a recipe needs.

_list:
    @just --list --unsorted

# Run a whole recovery on throwaway services: seed, back up, corrupt, restore, prove, report.
demo *ARGS:
    cargo run --quiet --release -- demo {{ARGS}}

# Run all tests against real PostgreSQL, Docker, Redis, S3, DNS and mail, started and stopped around them.
test *ARGS:
    .ci/services run .ci/tests {{ARGS}}

# Run every plan on throwaway services and print one table: plan, steps, times, objectives.
drill:
    .ci/services run cargo nextest run --no-capture --test drill -E 'test(=drill)'

# Kill plans at every point, resume, compare: all points, where `just test` takes a sample.
kill-all *ARGS:
    .ci/services run env LIFEBOAT_KILL_ALL=1 cargo nextest run --features kill-points --test kill --success-output final {{ARGS}}

# Check formatting, lints, licences and sources of dependencies.
lint:
    cargo fmt --check
    cargo clippy --quiet --all-targets --all-features -- -D warnings
    cargo deny --log-level error check -D unmatched-skip -D unnecessary-skip licenses bans sources

# Format the code.
fmt:
    cargo fmt

# Regenerate schemas/, docs/steps.md and docs/commands.md from the program.
schemas:
    .ci/schemas

# Measure: checks, start-up, runs beside other tools, restores beside psql.
bench *ARGS:
    cargo build --quiet --release
    target/venv/bin/python tests/bench/bench.py {{ARGS}}

# Measure restores, beside psql and pg_restore, and backups: `just bench-restore --tuned --rounds 5`.
bench-restore *ARGS:
    cargo build --quiet --release
    target/venv/bin/python tests/bench/bench.py --only restore,backup --users 430000 {{ARGS}}

# Measure recovery by a warm copy, and by a restore, as the size grows, in GiB: `just bench-warm --growth 0.1,1,4`.
bench-warm *ARGS:
    cargo build --quiet --release
    .ci/services run target/venv/bin/python tests/bench/bench.py --only warm --users 860000 {{ARGS}}

# Build the API documentation; a broken link is an error.
docs:
    RUSTDOCFLAGS='-D warnings' cargo doc --quiet --no-deps --document-private-items

# Start the services that the tests need, and leave them running.
services-up:
    .ci/services up

# Stop the services and remove their files.
services-down:
    .ci/services down
