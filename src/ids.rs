//! The names that steps and runs go by.
//!
//! Knows nothing of plans or runs: only what a well-formed name looks like.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// A step's id, unique in a run: `restore`, `restart[0]` (an instance of a
/// `for_each`), `restore/find-backup` (a step of the sub-plan that `restore` calls).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StepId(Arc<str>);

impl StepId {
    /// Takes an id as it is; ids in plans are checked with [`is_name`] where they are read.
    pub fn new(id: impl Into<Arc<str>>) -> Self {
        Self(id.into())
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The id as a file name: the characters that only expansion adds are replaced.
    pub fn file_stem(&self) -> String {
        self.0.replace('/', "__").replace('[', ".").replace(']', "").replace(':', ".")
    }
}

impl fmt::Display for StepId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::borrow::Borrow<str> for StepId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl From<&str> for StepId {
    fn from(id: &str) -> Self {
        Self::new(id)
    }
}

/// Whether `text` may name a step, an input, a var, a target or an output:
/// a letter or digit, then letters, digits, `-` and `_`.
pub fn is_name(text: &str) -> bool {
    text.len() <= 128
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
}

/// Whether `text` may name a plan: lower-case letters, digits and `-`.
pub fn is_plan_name(text: &str) -> bool {
    is_name(text) && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
}

/// A run's id: sortable by time, short, safe to read aloud, as in `20261124-062329-bako`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RunId(Arc<str>);

impl RunId {
    /// A fresh id: the UTC second it was made in, and two random syllables.
    pub fn generate(now: jiff::Timestamp) -> Self {
        const CONSONANTS: &[u8] = b"bdfgklmnprstvz";
        const VOWELS: &[u8] = b"aeiou";
        let mut id = now.strftime("%Y%m%d-%H%M%S-").to_string();
        for set in [CONSONANTS, VOWELS, CONSONANTS, VOWELS] {
            let pick = rand::random_range(0..set.len());
            id.push(char::from(set[pick]));
        }
        Self(id.into())
    }

    /// An id given by hand (`--run-id`).
    ///
    /// # Errors
    /// When it isn't made of letters, digits, `-` and `_`: it becomes a folder's name.
    pub fn parse(text: &str) -> Result<Self, String> {
        if is_name(text) {
            Ok(Self(text.into()))
        } else {
            Err(format!("`{text}` can't name a run: use letters, digits, `-` and `_`"))
        }
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn run_ids_sort_by_time() {
        let early = RunId::generate("2026-02-01T10:00:00Z".parse().unwrap());
        let late = RunId::generate("2026-02-01T10:00:01Z".parse().unwrap());
        assert!(early < late, "{early} {late}");
        assert_eq!(RunId::parse(early.as_str()), Ok(early));
    }

    #[test]
    fn names_that_could_leave_a_folder_are_refused() {
        for bad in ["", "../x", "a/b", ".hidden", "a b", "-x"] {
            assert!(RunId::parse(bad).is_err(), "{bad}");
        }
        assert!(is_plan_name("database-corruption") && !is_plan_name("Daily"));
    }
}
