//! Effects: what a step reads, creates, changes and destroys, as named resources.
//!
//! From them come the hazards, the locks, the dry-run's world and the impact counts.

use std::fmt;

use crate::record::event::EffectRecord;

/// Something in the outside world that steps act on, as text:
/// `postgres:db/manacore_auth/auth.users`, `container:docker/mana-core-auth`,
/// `object:backups/x.sql.gz`, `http:auth`, `file:path`, `host:…`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Resource(String);

impl Resource {
    /// A whole PostgreSQL server, by target.
    pub fn server(target: &str) -> Self {
        Self(format!("postgres:{target}"))
    }

    /// A database.
    pub fn database(target: &str, database: &str) -> Self {
        Self(format!("postgres:{target}/{database}"))
    }

    /// A table, as `schema.table`.
    pub fn table(target: &str, database: &str, table: &str) -> Self {
        Self(format!("postgres:{target}/{database}/{table}"))
    }

    /// A container.
    pub fn container(target: &str, container: &str) -> Self {
        Self(format!("container:{target}/{container}"))
    }

    /// An object in a storage; a prefix when it ends with `*`.
    pub fn object(target: &str, path: &str) -> Self {
        Self(format!("object:{target}/{path}"))
    }

    /// Anything else, as `kind:name`.
    pub fn other(kind: &str, name: &str) -> Self {
        Self(format!("{kind}:{name}"))
    }

    /// The text form.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether one is the other, or holds it: a database holds its tables, `backups/daily*` its objects.
    pub fn overlaps(&self, other: &Self) -> bool {
        holds(&self.0, &other.0) || holds(&other.0, &self.0)
    }
}

fn holds(outer: &str, inner: &str) -> bool {
    match outer.strip_suffix('*') {
        Some(prefix) => inner.starts_with(prefix),
        None => inner.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
    }
}

/// From the text form.
impl From<&str> for Resource {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How a step touches a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    /// Looks, changes nothing.
    Read,
    /// Brings it into being.
    Create,
    /// Changes it; what was there can be told from what is there after.
    Change,
    /// What was there is gone.
    Destroy,
    /// Nobody knows: a command or a request that doesn't declare its effects.
    Undetermined,
}

impl Access {
    /// The word used in JSON and on screens.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Create => "create",
            Self::Change => "change",
            Self::Destroy => "destroy",
            Self::Undetermined => "undetermined",
        }
    }

    /// Whether it can alter anything.
    pub const fn writes(self) -> bool {
        !matches!(self, Self::Read)
    }
}

/// What an effect means beyond its access; the hazard checks read it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// Nothing special.
    #[default]
    Plain,
    /// Stops a service.
    Stops,
    /// Starts a service.
    Starts,
    /// Takes a database away from under its clients: dropped, or another one put in its place.
    Displaces,
    /// Proves that a good backup exists.
    ProvesBackup,
    /// Verifies what the resource holds, or that a service is well.
    Verifies,
}

/// One effect of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effect {
    /// How.
    pub access: Access,
    /// What.
    pub resource: Resource,
    /// What it means for the hazards.
    pub role: Role,
    /// How the resource stands after it, where access and role don't say.
    pub leaves: Option<&'static str>,
}

impl Effect {
    /// A plain effect.
    pub const fn new(access: Access, resource: Resource) -> Self {
        Self { access, resource, role: Role::Plain, leaves: None }
    }

    /// A read.
    pub const fn read(resource: Resource) -> Self {
        Self::new(Access::Read, resource)
    }

    /// An effect as a plan declares it for a command: a verb and a resource, as in
    /// `change postgres:db/manacore_auth` or `stop container:docker/mana-core-auth`.
    ///
    /// # Errors
    /// When the verb is unknown, or what follows isn't `kind:name`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (verb, resource) =
            text.trim().split_once(char::is_whitespace).ok_or("an effect is a verb and a resource")?;
        let (kind, name) = resource
            .trim()
            .split_once(':')
            .filter(|(kind, name)| !kind.is_empty() && !name.is_empty())
            .ok_or_else(|| format!("`{resource}` is not `kind:name`"))?;
        let (access, role) = match verb {
            "read" => (Access::Read, Role::Plain),
            "create" => (Access::Create, Role::Plain),
            "change" => (Access::Change, Role::Plain),
            "destroy" => (Access::Destroy, Role::Plain),
            "stop" => (Access::Change, Role::Stops),
            "start" => (Access::Change, Role::Starts),
            "verify" => (Access::Read, Role::Verifies),
            _ => return Err(format!("`{verb}` is none of read, create, change, destroy, stop, start, verify")),
        };
        Ok(Self::new(access, Resource::other(kind, name)).role(role))
    }

    /// Whether others on the same resource can get in its way, so that order and locks
    /// matter. Messages to people don't mind each other, and what a command without
    /// declared effects touches has no name to tell it by.
    pub fn is_contended(&self) -> bool {
        let is_message = ["webhook:", "smtp:"].iter().any(|kind| self.resource.0.starts_with(kind));
        self.access != Access::Undetermined && !is_message
    }

    /// The same effect, with a word for how it leaves the resource: `restored`.
    #[must_use]
    pub const fn leaves(mut self, state: &'static str) -> Self {
        self.leaves = Some(state);
        self
    }

    /// The same effect with a meaning.
    #[must_use]
    pub const fn role(mut self, role: Role) -> Self {
        self.role = role;
        self
    }
}

impl Effect {
    /// The effect as records keep it, its resource written as `resource`.
    pub fn record(&self, resource: String) -> EffectRecord {
        let leaves = match (self.leaves, self.role) {
            (Some(leaves), _) => Some(leaves),
            (None, Role::Stops) => Some("stopped"),
            (None, Role::Starts) => Some("running"),
            _ => None,
        };
        EffectRecord {
            access: self.access.as_str().to_owned(),
            resource,
            leaves: leaves.map(ToOwned::to_owned),
            displaces: self.role == Role::Displaces,
        }
    }
}

impl From<&Effect> for EffectRecord {
    fn from(effect: &Effect) -> Self {
        effect.record(effect.resource.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn declared_effects() {
        let stop = Effect::parse("stop container:docker/auth").unwrap();
        assert_eq!((stop.access, stop.role), (Access::Change, Role::Stops));
        assert_eq!(stop.resource, Resource::container("docker", "auth"));
        for bad in ["", "change", "alter file:x", "change x", "change :x"] {
            assert!(Effect::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_database_holds_its_tables_and_no_namesake() {
        let database = Resource::database("db", "auth");
        assert!(database.overlaps(&Resource::table("db", "auth", "auth.users")));
        assert!(Resource::server("db").overlaps(&database));
        assert!(!database.overlaps(&Resource::database("db", "auth_old")));
        assert!(Resource::object("s", "daily_*").overlaps(&Resource::object("s", "daily_1.gz")));
    }
}
