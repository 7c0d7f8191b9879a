//! Messages to a run from other terminals: one durable file each, taken in by the run's dispatcher.
//!
//! Whoever sends is told at once that the message is kept; the run journals what it takes in.

use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::event::Answer;
use super::files;
use super::lock::Holder;

/// What may be sent to a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Message {
    /// A person's answer to a waiting step.
    Answer {
        /// The step.
        step: String,
        /// The answer.
        answer: Answer,
    },
    /// Other limits for a step.
    Adjust(super::steering::Adjustment),
    /// Start no new steps; stop when the running ones are through.
    Pause {
        /// Who asks for it.
        by: String,
        /// Why, if that was said.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        because: Option<String>,
    },
    /// Stop the running steps.
    Cancel {
        /// Who asks for it.
        by: String,
        /// Why, if that was said.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        because: Option<String>,
    },
}

/// What a file of the inbox holds.
#[derive(Serialize, Deserialize)]
struct Addressed {
    /// The process that worked on the run when it was sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    to: Option<Box<Holder>>,
    #[serde(flatten)]
    message: Message,
}

/// A message, and the file that keeps it until it is taken in.
#[derive(Debug)]
pub struct Letter {
    /// The message; the reason when the file can't be read as one.
    pub message: Result<Message, String>,
    to: Option<Box<Holder>>,
    path: PathBuf,
}

impl Letter {
    /// Whether it asks another process to stop than this one, which goes on because somebody wants it to. Told by the
    /// address, not by the time: a clock may have been set since.
    pub fn is_stale(&self, this: &Holder) -> bool {
        let stops = matches!(self.message, Ok(Message::Pause { .. } | Message::Cancel { .. }));
        stops && self.to.as_ref().is_some_and(|to| **to != *this)
    }

    /// Removes the file: call it once the message's effect is on disk.
    pub fn done(self) -> io::Result<()> {
        std::fs::remove_file(self.path)
    }
}

/// Keeps a message for the process that works on the run; it is on disk when this returns.
pub fn send(inbox: &Path, to: Option<Holder>, message: Message, now: Timestamp) -> io::Result<()> {
    files::make_folder(inbox)?;
    // Names sort by time; a clock that was set back puts none before what lies there already.
    let newest = letters(inbox)?.last().and_then(|path| sent(path));
    let at = newest.map_or(now.as_nanosecond(), |newest| now.as_nanosecond().max(newest + 1));
    // The suffix keeps two that were sent at once apart.
    let name = format!("{at:020}-{:08x}.json", rand::random::<u32>());
    files::write(&inbox.join(name), &serde_json::to_vec(&Addressed { to: to.map(Box::new), message })?)
}

/// The messages that lie in the inbox, oldest first.
pub fn receive(inbox: &Path) -> io::Result<Vec<Letter>> {
    letters(inbox)?.into_iter().map(open).collect()
}

fn letters(inbox: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(inbox) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut paths: Vec<PathBuf> = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    paths.sort();
    Ok(paths)
}

/// When it was sent, by its name.
fn sent(path: &Path) -> Option<i128> {
    path.file_name()?.to_str()?.split('-').next()?.parse().ok()
}

fn open(path: PathBuf) -> io::Result<Letter> {
    let bytes = std::fs::read(&path)?;
    Ok(match serde_json::from_slice(&bytes) {
        Ok(Addressed { to, message }) => Letter { message: Ok(message), to, path },
        Err(error) => Letter { message: Err(error.to_string()), to: None, path },
    })
}
