//! Redis for real: servers of a test's own, checked, saved, and brought back.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::needless_pass_by_value,
    reason = "a test says what went wrong by panicking"
)]

mod support;

#[path = "redis_steps/check.rs"]
mod check;
#[path = "redis_steps/container.rs"]
mod container;
#[path = "redis_steps/plan.rs"]
mod plan;
#[path = "redis_steps/restore.rs"]
mod restore;
#[path = "redis_steps/server.rs"]
mod server;
#[path = "redis_steps/snapshot.rs"]
mod snapshot;
