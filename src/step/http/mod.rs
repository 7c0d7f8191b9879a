//! Steps over HTTP.

pub mod check;
pub mod notify;
pub mod request;
