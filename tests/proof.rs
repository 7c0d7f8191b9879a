//! What a run can prove afterwards, and what it refuses: targets that were replaced, evidence that was changed,
//! secrets that would show, plans of strangers.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may panic; clippy knows only functions marked as tests"
)]

#[path = "cli/bench.rs"]
#[allow(dead_code, reason = "shared with the tests of the command line")]
mod bench;
#[path = "proof/every_type.rs"]
mod every_type;
#[path = "proof/evidence.rs"]
mod evidence;
#[path = "proof/modes.rs"]
mod modes;
#[path = "proof/paths.rs"]
mod paths;
#[path = "proof/replaced.rs"]
mod replaced;
#[path = "proof/secrets.rs"]
mod secrets;
#[path = "proof/stranger.rs"]
mod stranger;
mod support;
