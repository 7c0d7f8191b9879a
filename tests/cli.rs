//! The command line as a person or a script uses it: the built program, real files, real
//! processes; whole outputs as snapshots with only times, ids and names of this machine masked.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what went wrong by panicking, its helpers too")]

#[path = "cli/bench.rs"]
mod bench;
#[path = "cli/exits.rs"]
mod exits;
#[path = "cli/journals.rs"]
mod journals;
#[path = "cli/pages.rs"]
mod pages;
#[path = "cli/runs.rs"]
mod runs;
#[path = "cli/steer.rs"]
mod steer;
#[path = "cli/stop.rs"]
mod stop;
#[path = "cli/undo.rs"]
mod undo;
