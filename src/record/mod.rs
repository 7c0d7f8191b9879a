//! What happened in a run: events, their fold into a state, and the journal that keeps them.
//!
//! Knows nothing of plans, engines or reports, so an old journal is read without its plan.

pub mod event;
