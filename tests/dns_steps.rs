//! DNS for real: BIND as the primary and the secondary of a zone of each test's own.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::needless_pass_by_value,
    reason = "a test says what went wrong by panicking"
)]

mod support;

#[path = "dns_steps/check.rs"]
mod check;
#[path = "dns_steps/refusals.rs"]
mod refusals;
#[path = "dns_steps/server.rs"]
mod server;
#[path = "dns_steps/update.rs"]
mod update;
