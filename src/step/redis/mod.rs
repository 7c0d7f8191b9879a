//! Steps on Redis and Valkey servers.

pub mod check;
mod place;
mod rdb;
pub mod restore;
pub mod snapshot;
