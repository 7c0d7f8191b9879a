//! Messages to a run from other terminals: one durable file each, taken in by the run's dispatcher.
//!
//! Whoever sends is told at once that the message is kept; the run journals what it takes in.

use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::event::Answer;
use super::files;

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

/// A message, and the file that keeps it until it is taken in.
#[derive(Debug)]
pub struct Letter {
    /// The message; the reason when the file can't be read as one.
    pub message: Result<Message, String>,
    path: PathBuf,
}

impl Letter {
    /// Whether it asks a process to stop that had ended before `since`: the one that goes on was not asked.
    pub fn is_stale(&self, since: Timestamp) -> bool {
        let stops = matches!(self.message, Ok(Message::Pause { .. } | Message::Cancel { .. }));
        let name = self.path.file_name().and_then(|name| name.to_str()).and_then(|name| name.split('-').next());
        let sent = name.and_then(|sent| sent.parse::<i128>().ok());
        stops && sent.is_some_and(|sent| sent < since.as_nanosecond())
    }

    /// Removes the file: call it once the message's effect is on disk.
    pub fn done(self) -> io::Result<()> {
        std::fs::remove_file(self.path)
    }
}

/// Keeps a message for the run; it is on disk when this returns.
pub fn send(inbox: &Path, message: &Message, now: Timestamp) -> io::Result<()> {
    files::make_folder(inbox)?;
    // Names sort by time; the suffix keeps two that were sent at once apart.
    let name = format!("{:020}-{:08x}.json", now.as_nanosecond(), rand::random::<u32>());
    files::write(&inbox.join(name), &serde_json::to_vec(message)?)
}

/// The messages that lie in the inbox, oldest first.
pub fn receive(inbox: &Path) -> io::Result<Vec<Letter>> {
    let entries = match std::fs::read_dir(inbox) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut paths: Vec<PathBuf> = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    paths.sort();
    paths.into_iter().map(open).collect()
}

fn open(path: PathBuf) -> io::Result<Letter> {
    let bytes = std::fs::read(&path)?;
    Ok(Letter { message: serde_json::from_slice(&bytes).map_err(|error| error.to_string()), path })
}
