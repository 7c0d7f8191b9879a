//! Steps on Redis and Valkey servers.

pub mod check;
mod rdb;
pub mod snapshot;
