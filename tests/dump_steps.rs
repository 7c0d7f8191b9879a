//! Backups and restores with real PostgreSQL, on disks and in buckets: whole, damaged,
//! interrupted, and what finds, verifies, copies and prunes them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::needless_pass_by_value,
    reason = "a test says what went wrong by panicking"
)]

mod support;

#[path = "dump_steps/archives.rs"]
mod archives;
#[path = "dump_steps/backup.rs"]
mod backup;
#[path = "dump_steps/bucket.rs"]
mod bucket;
#[path = "dump_steps/damaged.rs"]
mod damaged;
#[path = "dump_steps/faulty.rs"]
mod faulty;
#[path = "dump_steps/fixture.rs"]
mod fixture;
#[path = "dump_steps/large.rs"]
mod large;
#[path = "dump_steps/partial.rs"]
mod partial;
#[path = "dump_steps/partitions.rs"]
mod partitions;
#[path = "dump_steps/parts.rs"]
mod parts;
#[path = "dump_steps/restore.rs"]
mod restore;
#[path = "dump_steps/rows.rs"]
mod rows;
#[path = "dump_steps/storages.rs"]
mod storages;
#[path = "dump_steps/unproven.rs"]
mod unproven;
#[path = "dump_steps/whole.rs"]
mod whole;
