//! The kill harness: plans that are killed (SIGKILL) at every point of `src/kill.rs`, resumed, and
//! compared with an unbroken run, the world and the report. See docs/design/kill-harness.md.

#![cfg(feature = "kill-points")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test says what went wrong by panicking"
)]

mod stage;
mod support;

#[path = "kill/containers.rs"]
mod containers;
#[path = "kill/harness.rs"]
mod harness;
#[path = "kill/people.rs"]
mod people;
#[path = "kill/postgres.rs"]
mod postgres;
#[path = "kill/redis.rs"]
mod redis_server;
#[path = "kill/scenario_1.rs"]
mod scenario_1;
#[path = "kill/undo.rs"]
mod undo;
#[path = "kill/world.rs"]
mod world;
