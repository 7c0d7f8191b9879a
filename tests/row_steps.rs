//! Steps that carry rows between databases and storages, and the one that watches standbys, on
//! real servers: fresh, already done, blocked, failing, killed.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::needless_pass_by_value,
    reason = "a test says what went wrong by panicking"
)]

mod support;

#[path = "row_steps/copy_rows.rs"]
mod copy_rows;
#[path = "row_steps/encrypted.rs"]
mod encrypted;
#[path = "row_steps/export.rs"]
mod export;
#[path = "row_steps/fixture.rs"]
mod fixture;
#[path = "row_steps/import.rs"]
mod import;
#[path = "row_steps/plans.rs"]
mod plans;
#[path = "row_steps/replication.rs"]
mod replication;
