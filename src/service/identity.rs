//! Who is behind a name: what tells one server, database, container or storage from another at the same address.
//!
//! Only what lasts as long as the thing itself: a Redis server's run id changes whenever it is started, so
//! its address is all there is. Holds no secrets.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::future::join_all;

use super::postgres::Session;
use super::{Services, StorageSettings, Target};

/// What tells a thing from another one: names and values.
pub type Identity = BTreeMap<String, String>;

/// In place of a server's identity, where the role may not ask for it.
const UNTOLD: &str = "the role may not ask";

/// Whether nobody can say who is there: another one at its place would not be noticed.
pub fn is_untold(identity: &Identity) -> bool {
    identity.get("system_identifier").is_some_and(|value| value == UNTOLD)
}

/// The bound on asking one target: a server that doesn't answer fails its steps in its own words.
const PATIENCE: Duration = Duration::from_secs(5);

/// The settings that say where a storage is.
const PLACE: [&str; 3] = ["bucket", "endpoint", "root"];

/// The names under which a resource's identity is kept, from the widest: a table's are its server and its database.
pub fn names(resource: &str) -> Vec<String> {
    let Some((kind, rest)) = resource.split_once(':') else { return Vec::new() };
    let (target, below) = rest.split_once('/').unwrap_or((rest, ""));
    let thing = below.split('/').next().unwrap_or_default();
    // What is known only when the step does it can't be looked at before.
    if target.is_empty() || resource.contains('‹') {
        return Vec::new();
    }
    match kind {
        "postgres" if thing.is_empty() => vec![format!("postgres:{target}")],
        "postgres" => vec![format!("postgres:{target}"), format!("postgres:{target}/{thing}")],
        "roles" => vec![format!("postgres:{target}")],
        "container" if !below.is_empty() => vec![format!("container:{target}/{below}")],
        "object" | "storage" => vec![format!("storage:{target}")],
        "redis" => vec![format!("redis:{target}")],
        _ => Vec::new(),
    }
}

impl Services {
    /// Who is behind these names now. What has no identity, isn't there or can't be asked is left out.
    pub async fn identities(&self, names: &BTreeSet<String>) -> BTreeMap<String, Identity> {
        let mut by_target: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for name in names {
            by_target.entry(name.split('/').next().unwrap_or(name)).or_default().push(name);
        }
        let asked = by_target.into_iter().map(async |(target, names)| {
            let Some((kind, target)) = target.split_once(':') else { return Vec::new() };
            let asked = self.behind(kind, target, &names);
            tokio::time::timeout(PATIENCE, asked).await.ok().flatten().unwrap_or_default()
        });
        join_all(asked).await.into_iter().flatten().filter(|(_, identity)| !identity.is_empty()).collect()
    }

    async fn behind(&self, kind: &str, target: &str, names: &[&str]) -> Option<Vec<(String, Identity)>> {
        let mut found = Vec::new();
        match (kind, self.target(target).ok()?) {
            ("postgres", Target::Postgres(_)) => {
                let session = self.postgres(target).ok()?.connect(None).await.ok()?;
                for name in names {
                    let identity = match name.split_once('/') {
                        Some((_, database)) => database_identity(&session, database).await,
                        None => server_identity(&session).await,
                    };
                    found.push(((*name).to_owned(), identity?));
                }
            }
            ("container", Target::Docker(_)) => {
                let engine = self.docker(target).ok()?;
                for name in names {
                    let (_, container) = name.split_once('/')?;
                    if let Some(container) = engine.find(container).await.ok()? {
                        found.push(((*name).to_owned(), one("id", container.id)));
                    }
                }
            }
            ("storage", Target::Storage(settings)) => {
                found.push((names.first()?.to_string(), self.masked(storage_identity(settings))));
            }
            ("redis", Target::Redis(_)) => {
                let address = self.redis(target).ok()?.address();
                found.push((names.first()?.to_string(), self.masked(one("address", address))));
            }
            _ => return None,
        }
        Some(found)
    }

    fn masked(&self, identity: Identity) -> Identity {
        let mask = |value: String| self.redactor().redact(&value).into_owned();
        identity.into_iter().map(|(name, value)| (name, mask(value))).collect()
    }
}

async fn server_identity(session: &Session) -> Option<Identity> {
    let facts = session.server_facts().await.ok()?;
    Some(one("system_identifier", facts.system_identifier.unwrap_or_else(|| UNTOLD.to_owned())))
}

async fn database_identity(session: &Session, database: &str) -> Option<Identity> {
    let found = session.find_database(database).await.ok()?;
    Some(found.map(|found| one("oid", found.oid.to_string())).unwrap_or_default())
}

/// Where a storage is, without what lets one in.
fn storage_identity(settings: &StorageSettings) -> Identity {
    let place = PLACE.iter().filter_map(|name| Some(((*name).to_owned(), settings.settings.get(*name)?)));
    let mut identity: Identity = place
        .map(|(name, value)| {
            let value = match name.as_str() {
                "root" if settings.scheme == "fs" => {
                    std::path::absolute(value).map_or_else(|_| value.clone(), |path| path.display().to_string())
                }
                "endpoint" => without_user(value),
                _ => value.clone(),
            };
            (name, value)
        })
        .collect();
    identity.insert("scheme".to_owned(), settings.scheme.clone());
    identity
}

/// A URL without user, password, and query.
fn without_user(url: &str) -> String {
    let bare = url.split(['?', '#']).next().unwrap_or_default();
    let Some((scheme, rest)) = bare.split_once("://") else { return bare.to_owned() };
    let (authority, path) = rest.split_once('/').map_or((rest, ""), |(authority, path)| (authority, path));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    format!("{scheme}://{host}/{path}").trim_end_matches('/').to_owned()
}

fn one(name: &str, value: String) -> Identity {
    Identity::from([(name.to_owned(), value)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_known_by_its_server_and_its_database() {
        assert_eq!(names("postgres:db/app/public.users"), ["postgres:db", "postgres:db/app"]);
        assert_eq!(names("object:backups/daily/*"), ["storage:backups"]);
        assert_eq!(names("container:docker/app"), ["container:docker/app"]);
        for nothing in ["postgres:db/app_‹run.id›", "file:x", "webhook:oncall", "process:ls", "nonsense"] {
            assert!(names(nothing).is_empty(), "{nothing}");
        }
    }

    #[test]
    fn a_storages_place_holds_no_secret() {
        let settings = [
            ("bucket", "b"),
            ("endpoint", "https://key:secret@s3.example.com:9000/?token=secret"),
            ("root", "/daily"),
            ("secret_access_key", "secret"),
        ];
        let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let identity = storage_identity(&StorageSettings { scheme: "s3".to_owned(), settings });
        assert_eq!(identity["endpoint"], "https://s3.example.com:9000");
        assert!(!format!("{identity:?}").contains("secret"), "{identity:?}");
    }
}
