//! PostgreSQL dumps: what they say, whether they are whole, and how they are read.
//!
//! Knows storages and processes; knows nothing of steps or plans. A dump is read by
//! [`read`], proven by [`proof`], described by its [`manifest`].

pub mod archive;
pub mod compression;
pub mod lexer;
pub mod manifest;
pub mod statement;
pub mod survey;
