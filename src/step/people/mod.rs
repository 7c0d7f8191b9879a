//! Steps that ask people. They are never run: the engine asks, and counts the answers.

pub mod approve;
pub mod manual;

use crate::failure::Failure;
use crate::record::event::{Answer, Outputs};
use crate::step::Done;

/// What `by`, `at` and `note` come to: everybody's name, the last one's time, all words.
fn words_of(answers: &[Answer]) -> Outputs {
    let names: Vec<&str> = answers.iter().map(|answer| answer.by.as_str()).collect();
    let notes: Vec<&str> = answers.iter().filter_map(|answer| answer.note.as_deref()).collect();
    let at = answers.iter().map(|answer| answer.at).max().map(|at| at.to_string());
    [("by", names.join(", ")), ("at", at.unwrap_or_default()), ("note", notes.join("\n"))]
        .map(|(name, value)| (name.to_owned(), value.into()))
        .into()
}

/// The answer of a step for people to somebody who runs it all the same.
fn never_run() -> Result<Done, Failure> {
    Err(Failure::permanent("a step for people is answered, not run"))
}
