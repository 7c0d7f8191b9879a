//! A dump restored over several connections is what `psql` makes of it, object by object
//! and row by row; and a restore that was interrupted goes on where it was.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::needless_pass_by_value,
    reason = "a test says what went wrong by panicking"
)]
#![allow(
    clippy::format_collect,
    clippy::format_push_string,
    clippy::needless_raw_string_hashes,
    reason = "texts are made to be read, not to be made fast"
)]

mod support;

#[path = "restore_equal/binary.rs"]
mod binary;
#[path = "restore_equal/corpus.rs"]
mod corpus;
#[path = "restore_equal/crash.rs"]
mod crash;
#[path = "restore_equal/equal.rs"]
mod equal;
#[allow(dead_code, reason = "shared with other tests of dumps")]
#[path = "dump_steps/fixture.rs"]
mod fixture;
#[path = "restore_equal/reader.rs"]
mod reader;
#[path = "restore_equal/resume.rs"]
mod resume;
#[path = "restore_equal/server.rs"]
mod server;
