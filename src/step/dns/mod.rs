//! Steps on names: what servers answer, and changes of a zone.

use std::time::Duration;

use super::effect::Resource;
use crate::service::dns::{Kind, canonical_name};

pub mod check;
pub mod update;

/// A record, however it is reached: clients see it by its name alone.
fn resource(name: &str, kind: Kind) -> Resource {
    let name = canonical_name(name).unwrap_or_else(|_| name.to_owned());
    Resource::other("dns", &format!("{name}/{}", kind.as_str()))
}

/// The pauses between two questions, longer and longer.
fn pauses() -> impl Iterator<Item = Duration> {
    let first = [200, 500, 1000].map(Duration::from_millis);
    first.into_iter().chain(std::iter::repeat(Duration::from_secs(2)))
}
