//! Showing what happened: a run told from its events alone, live or long after.
//!
//! Knows only `record` and the small words of the domain: nothing of plans, engines
//! or services, so an old run is told without its plan. Read next: [`text`] for the
//! few words and shapes that every page for people is made of.

pub mod finding;
pub mod text;
