//! Steps on Redis and Valkey servers.

pub mod check;
