//! Ports of 127.0.0.1 for servers that tests start.

use std::fs::File;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;

/// Below those that sandboxes choose from, and that the kernel hands to clients.
const PORTS: std::ops::Range<u16> = 10_000..15_000;

/// A port that nobody listens on, and that no other test is given while this one's process lives: between its choice and
/// the server's start another test could take it, and so could this one, which often wants several.
pub fn free_port() -> u16 {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("ports");
    std::fs::create_dir_all(&folder).unwrap();
    // Where each process looks first: most find one at once.
    let begin = std::process::id() as usize * 16 % PORTS.len();
    let port = PORTS.cycle().skip(begin).take(PORTS.len()).find(|port| {
        let file = File::options().create(true).append(true).open(folder.join(port.to_string())).unwrap();
        let free = file.try_lock().is_ok() && TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
        if free {
            // The lock goes with the process.
            std::mem::forget(file);
        }
        free
    });
    port.expect("a free port")
}
