//! Base backups and recovery to a moment, on clusters of the tests' own.

mod support;

#[path = "recovery/backup.rs"]
mod backup;
#[path = "recovery/fixture.rs"]
mod fixture;
#[path = "recovery/globals.rs"]
mod globals;
#[path = "recovery/history.rs"]
mod history;
#[path = "recovery/moments.rs"]
mod moments;
#[path = "recovery/refusals.rs"]
mod refusals;
