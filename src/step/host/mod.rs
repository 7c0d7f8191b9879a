//! Steps on the host that Lifeboat runs on.

pub mod disk;
