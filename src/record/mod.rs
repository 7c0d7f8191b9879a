//! What happened in a run: events, their fold into a state, and the journal that keeps them.
//!
//! Knows nothing of plans, engines or reports, so an old journal is read without its plan.
//! Read next: [`event`] for the words, [`state`] for the fold, [`journal`] for the file,
//! [`store`] for the folder of a run, [`measure`] for recovery time and recovery point.

pub mod actor;
pub mod bundle;
pub mod clock;
pub mod event;
pub mod files;
mod folder;
pub mod inbox;
pub mod journal;
pub mod lock;
pub mod measure;
pub mod proof;
pub mod sink;
pub mod state;
pub mod steering;
mod step_state;
pub mod store;
pub mod undo;
