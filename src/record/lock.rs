//! Locks on files: held by an open file, gone with the process that holds them.
//!
//! The file's text says who holds it, for the one who is refused.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::event::Actor;

/// A held lock; dropping it, or the end of the process, lets it go.
#[derive(Debug)]
pub struct FileLock {
    _file: File,
}

/// Who holds a lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The process.
    pub by: Actor,
    /// The run it works on.
    pub run: String,
    /// Since when.
    pub since: Timestamp,
}

/// Why a lock was not obtained.
#[derive(Debug)]
pub enum Refused {
    /// Another process holds it; who, if the file tells.
    Held(Option<Box<Holder>>),
    /// The system refused.
    Io(io::Error),
}

impl Holder {
    /// `maria@db1 (process 4711) for run 2026…, since 10:00:00Z`.
    pub fn describe(&self) -> String {
        format!("{} for run {}, since {}", self.by.describe(), self.run, self.since.strftime("%Y-%m-%d %H:%M:%SZ"))
    }
}

/// Takes the lock, or says at once who holds it.
pub fn acquire(path: &Path, holder: &Holder) -> Result<FileLock, Refused> {
    let mut file = open(path).map_err(Refused::Io)?;
    // `holder` below asks with a lock of its own that lasts an instant: don't take it for a holder.
    for pause in [10, 40, 150] {
        match file.try_lock() {
            // Whoever held it may have taken the file away before: then there may be another by now.
            Ok(()) if !is_at(&file, path).map_err(Refused::Io)? => return acquire(path, holder),
            Ok(()) => {
                write(&mut file, holder).map_err(Refused::Io)?;
                return Ok(FileLock { _file: file });
            }
            Err(TryLockError::WouldBlock) => std::thread::sleep(std::time::Duration::from_millis(pause)),
            Err(TryLockError::Error(error)) => return Err(Refused::Io(error)),
        }
    }
    Err(Refused::Held(read(&mut file).map(Box::new)))
}

/// Whether an open file is the one that bears the name.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let (held, named) = (file.metadata()?, std::fs::metadata(path)?);
    Ok((held.dev(), held.ino()) == (named.dev(), named.ino()))
}

/// Who holds the lock now: `None` when nobody does, `Some(None)` when the file doesn't tell.
pub fn holder(path: &Path) -> io::Result<Option<Option<Holder>>> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(None),
        Err(TryLockError::WouldBlock) => Ok(Some(read(&mut file))),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Who holds the lock, or held it last.
pub fn named(path: &Path) -> Option<Holder> {
    read(&mut File::open(path).ok()?)
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

fn write(file: &mut File, holder: &Holder) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(&serde_json::to_vec(holder)?)?;
    file.flush()
}

fn read(file: &mut File) -> Option<Holder> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.read_to_string(&mut text).ok()?;
    serde_json::from_str(&text).ok()
}
