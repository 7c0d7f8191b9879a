//! What goes wrong around a run: disks, wires, servers, terminals, other processes. Each fault
//! is a real one, and each time the run can be gone on with to the end that an unbroken one has.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test says what went wrong by panicking, its helpers too"
)]

mod support;

#[path = "cli/bench.rs"]
#[allow(dead_code, reason = "each test program uses a part of it")]
mod bench;
#[path = "faults/clock.rs"]
mod clock;
#[path = "faults/disk.rs"]
mod disk;
#[path = "faults/memory.rs"]
mod memory;
#[path = "faults/processes.rs"]
mod processes;
#[path = "faults/restores.rs"]
mod restores;
#[path = "faults/servers.rs"]
mod servers;
#[path = "faults/stalls.rs"]
mod stalls;
#[path = "faults/wire.rs"]
mod wire;
