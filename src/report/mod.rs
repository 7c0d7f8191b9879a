//! Showing what happened: a run told from its events alone, live or long after.
//!
//! Knows only `record` and the small words of the domain: nothing of plans, engines
//! or services, so an old run is told without its plan. Read next: [`evidence`] for what
//! is known of a run, [`text`] for the shapes that every page for people is made of.

pub mod bars;
pub mod evidence;
pub mod finding;
pub mod lines;
pub mod live;
pub mod markdown;
pub mod next;
pub mod pace;
pub mod page;
pub mod steered;
pub mod text;
pub mod world;

#[cfg(test)]
mod tests;
