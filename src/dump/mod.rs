//! PostgreSQL dumps: what they say, whether they are whole, and how they are read.
//!
//! Knows storages and processes; knows nothing of steps or plans. A dump is read by
//! [`source`], proven by [`proof`], described by its [`manifest`].

pub mod archive;
pub mod beside;
pub mod binary;
pub mod choice;
pub mod compression;
pub mod count;
mod encoding;
pub mod globals;
pub mod lexer;
pub mod load;
pub mod manifest;
pub mod outline;
pub mod parallel;
pub mod proof;
pub mod proven;
pub mod rows;
pub mod source;
pub mod statement;
pub mod survey;
pub mod take;
pub mod tap;
mod token;
pub mod whole;
