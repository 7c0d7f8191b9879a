//! Steps on hosts that are reached by SSH.

pub mod exec;

#[cfg(test)]
mod tests;
