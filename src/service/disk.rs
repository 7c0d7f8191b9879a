//! File systems of this host: how much of one is free.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::failure::Failure;

/// A network file system whose server is gone answers never.
const ANSWER: Duration = Duration::from_secs(20);

/// A file system's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Bytes that may still be written without being root.
    pub free: u64,
    /// All of its bytes.
    pub total: u64,
}

/// The file system that `path` lies on.
///
/// # Errors
/// What the system says.
pub fn of(path: &Path) -> Result<Space, nix::Error> {
    let stat = nix::sys::statvfs::statvfs(path)?;
    #[allow(clippy::useless_conversion, reason = "the widths differ between systems")]
    let [available, blocks, unit] =
        [u64::from(stat.blocks_available()), u64::from(stat.blocks()), u64::from(stat.fragment_size())];
    Ok(Space { free: available.saturating_mul(unit), total: blocks.saturating_mul(unit) })
}

/// As [`of`], without waiting for ever.
///
/// # Errors
/// When there is nothing at `path`, or the file system can't be asked.
pub async fn look(path: &str) -> Result<Space, Failure> {
    let asked = PathBuf::from(path);
    // What never comes back keeps its thread, not this one.
    let looked = tokio::task::spawn_blocking(move || of(&asked));
    let attempted = format!("look at the disk of `{path}`");
    match tokio::time::timeout(ANSWER, looked).await {
        Ok(Ok(Ok(space))) => Ok(space),
        Ok(Ok(Err(nix::Error::ENOENT | nix::Error::ENOTDIR))) => Err(Failure::permanent("there is no such path")
            .help("name a folder that is there; a disk that isn't mounted shows as none")),
        Ok(Ok(Err(error))) => Err(Failure::permanent(error.desc())),
        Ok(Err(error)) => Err(Failure::permanent(error.to_string())),
        Err(_) => Err(Failure::transient(format!("no answer within {}s", ANSWER.as_secs()))
            .help("a network file system may have lost its server")),
    }
    .map_err(|failure: Failure| failure.context(attempted))
}
