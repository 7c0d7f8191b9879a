//! Lifeboat: a workflow engine for disaster recovery, driven by declarative plans.
//!
//! The layers, each importing only what stands above it in this list:
//! small words of the domain ([`ids`], [`kill`], [`units`], [`secret`], [`retry`], [`matcher`], [`failure`]),
//! [`template`], [`record`] (what happened), [`service`] (the outside world), [`step`] (what a
//! step type is), [`environment`], [`plan`] (a checked graph of steps).

// A recovery must end in a message, never in a panic. Unit tests may (`.clippy.toml`).
#![warn(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod cli;
pub mod dump;
pub mod engine;
pub mod environment;
pub mod failure;
pub mod ids;
pub mod kill;
pub mod matcher;
pub mod plan;
pub mod record;
pub mod report;
pub mod retry;
pub mod sandbox;
pub mod secret;
pub mod service;
pub mod step;
pub mod template;
pub mod units;
