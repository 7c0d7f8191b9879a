//! What a server tells about itself, its roles, databases and sessions. Reads only.

use tokio_postgres::Row;

use super::session::Session;
use super::tool::Version;
use super::wal::Lsn;
use crate::failure::Failure;

/// What identifies a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerFacts {
    /// The cluster's identity, the same for its standbys; `None` where the role may not ask.
    pub system_identifier: Option<String>,
    /// Its version.
    pub version: Version,
    /// Whether it is a standby or recovers: nothing can be written then.
    pub in_recovery: bool,
}

/// Where a server's history stands. What goes on from here has the same timeline, and a position no smaller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// The timeline: a promotion and a recovery to a moment begin a new one.
    pub timeline: u32,
    /// How far its WAL is on its disk: a crash doesn't lead back behind it.
    pub lsn: Lsn,
}

/// What the connecting role may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Role {
    /// Its name.
    pub name: String,
    /// Whether it may do everything.
    pub superuser: bool,
    /// Whether it may create databases.
    pub create_db: bool,
    /// Whether row security doesn't hide rows from it.
    pub bypass_rls: bool,
    /// Whether it may end other roles' sessions (but superusers').
    pub signal_backend: bool,
}

/// A database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Database {
    /// Its identity: a name can pass to another one, an oid can't.
    pub oid: u32,
    /// Its name.
    pub name: String,
    /// Its owner.
    pub owner: String,
    /// Whether the connecting role owns it, itself or as a member.
    pub owned: bool,
    /// Its encoding.
    pub encoding: String,
    /// Its collation.
    pub collate: String,
    /// Its character classification.
    pub ctype: String,
    /// Its size in bytes, where the role may ask.
    pub size: Option<u64>,
    /// Whether it takes connections: `false` is the fence.
    pub allow_connections: bool,
    /// How many connections it takes; -1 for any number, -2 for a database that a broken DROP left behind.
    pub connection_limit: i32,
    /// Whether it is a template.
    pub is_template: bool,
    /// Its privileges as `aclitem`s; `None` for the default ones.
    pub acl: Option<Vec<String>>,
    /// Its comment.
    pub comment: Option<String>,
}

impl Database {
    /// Whether a DROP broke off in it: it can only be dropped again.
    pub const fn is_half_dropped(&self) -> bool {
        self.connection_limit == -2
    }
}

/// A session on a database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Activity {
    /// The server process.
    pub pid: i32,
    /// Its role.
    pub user: String,
    /// Its application name.
    pub application: String,
    /// Where it connects from.
    pub client: String,
    /// `active`, `idle`, …
    pub state: String,
    /// Whether its role is a superuser.
    pub superuser: bool,
    /// Whether it is a client's (not a worker of the server's).
    pub is_client: bool,
}

impl std::fmt::Display for Activity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let application = if self.application.is_empty() { "unnamed" } else { &self.application };
        write!(f, "{application} (pid {}, {} from {}, {})", self.pid, self.user, self.client, self.state)
    }
}

impl Session {
    /// What identifies this server.
    ///
    /// # Errors
    /// When it doesn't answer.
    pub async fn server_facts(&self) -> Result<ServerFacts, Failure> {
        let row = self
            .row(
                "ask the server who it is",
                "SELECT current_setting('server_version_num')::int4, pg_is_in_recovery(), \
                 has_function_privilege('pg_catalog.pg_control_system()', 'EXECUTE')",
                &[],
            )
            .await?;
        let system_identifier = if row.get(2) {
            let sql = "SELECT system_identifier::text FROM pg_catalog.pg_control_system()";
            Some(self.row("ask the server who it is", sql, &[]).await?.get(0))
        } else {
            None
        };
        Ok(ServerFacts {
            system_identifier,
            version: Version::from_num(row.get::<_, i32>(0).unsigned_abs()),
            in_recovery: row.get(1),
        })
    }

    /// Where this server's history stands; `None` for a standby, which follows another's.
    ///
    /// # Errors
    /// When it doesn't answer, or the role may not ask.
    pub async fn moment(&self) -> Result<Option<Moment>, Failure> {
        let sql = "SELECT CASE WHEN NOT pg_is_in_recovery() THEN pg_walfile_name(pg_current_wal_flush_lsn()) END, \
                          CASE WHEN NOT pg_is_in_recovery() THEN pg_current_wal_flush_lsn()::text END";
        let row = self.row("ask where the server's history stands", sql, &[]).await?;
        let (Some(file), Some(lsn)) = (row.get::<_, Option<&str>>(0), row.get::<_, Option<&str>>(1)) else {
            return Ok(None);
        };
        // A WAL file is named by timeline, then position.
        let timeline = file.get(..8).and_then(|timeline| u32::from_str_radix(timeline, 16).ok());
        match (timeline, lsn.parse()) {
            (Some(timeline), Ok(lsn)) => Ok(Some(Moment { timeline, lsn })),
            _ => Err(Failure::permanent(format!("the server says that its history is at {lsn} in {file}"))),
        }
    }

    /// What the connecting role may do.
    ///
    /// # Errors
    /// When the server doesn't answer.
    pub async fn role(&self) -> Result<Role, Failure> {
        let row = self
            .row(
                "ask for the role's privileges",
                "SELECT rolname::text, rolsuper, rolcreatedb OR rolsuper, rolbypassrls OR rolsuper, \
                        rolsuper OR pg_has_role('pg_signal_backend', 'USAGE') \
                 FROM pg_catalog.pg_roles WHERE rolname = current_user",
                &[],
            )
            .await?;
        Ok(Role {
            name: row.get(0),
            superuser: row.get(1),
            create_db: row.get(2),
            bypass_rls: row.get(3),
            signal_backend: row.get(4),
        })
    }

    /// The database of that name, if there is one.
    ///
    /// # Errors
    /// When the server doesn't answer.
    pub async fn find_database(&self, name: &str) -> Result<Option<Database>, Failure> {
        self.database_where("d.datname = $1", &name).await
    }

    /// The database of that oid, whatever it is called now.
    ///
    /// # Errors
    /// When the server doesn't answer.
    pub async fn find_database_by_oid(&self, oid: u32) -> Result<Option<Database>, Failure> {
        self.database_where("d.oid = $1", &oid).await
    }

    async fn database_where(
        &self,
        condition: &str,
        param: &(dyn tokio_postgres::types::ToSql + Sync),
    ) -> Result<Option<Database>, Failure> {
        let sql = format!(
            "SELECT d.oid, d.datname::text, pg_get_userbyid(d.datdba)::text, pg_has_role(d.datdba, 'USAGE'), \
                    pg_encoding_to_char(d.encoding)::text, d.datcollate::text, d.datctype::text, \
                    CASE WHEN d.datconnlimit <> -2 AND (has_database_privilege(d.oid, 'CONNECT') \
                              OR pg_has_role('pg_read_all_stats', 'USAGE')) \
                         THEN pg_database_size(d.oid) END, \
                    d.datallowconn, d.datconnlimit, d.datistemplate, d.datacl::text[], \
                    shobj_description(d.oid, 'pg_database') \
             FROM pg_catalog.pg_database d WHERE {condition}"
        );
        let row = self.maybe_row("look for a database", &sql, &[param]).await?;
        Ok(row.as_ref().map(database))
    }

    /// The sessions on a database, but this one.
    ///
    /// # Errors
    /// When the server doesn't answer.
    pub async fn sessions_on(&self, oid: u32) -> Result<Vec<Activity>, Failure> {
        self.activity("datid = $1", &oid).await
    }

    /// The sessions whose application name starts with `prefix`, but this one.
    ///
    /// # Errors
    /// When the server doesn't answer.
    pub async fn sessions_named(&self, prefix: &str) -> Result<Vec<Activity>, Failure> {
        // application_name is cut to 63 bytes.
        let prefix: String = prefix.chars().take(63).collect();
        self.activity("starts_with(application_name, $1)", &prefix).await
    }

    async fn activity(
        &self,
        condition: &str,
        param: &(dyn tokio_postgres::types::ToSql + Sync),
    ) -> Result<Vec<Activity>, Failure> {
        let sql = format!(
            "SELECT a.pid, coalesce(a.usename::text, ''), coalesce(a.application_name, ''), \
                    coalesce(host(a.client_addr), 'local'), coalesce(a.state, a.backend_type, ''), \
                    coalesce(r.rolsuper, false), coalesce(a.backend_type = 'client backend', true) \
             FROM pg_catalog.pg_stat_activity a LEFT JOIN pg_catalog.pg_roles r ON r.oid = a.usesysid \
             WHERE a.pid <> pg_backend_pid() AND {condition} ORDER BY a.pid"
        );
        let rows = self.rows("list sessions", &sql, &[param]).await?;
        Ok(rows
            .iter()
            .map(|row| Activity {
                pid: row.get(0),
                user: row.get(1),
                application: row.get(2),
                client: row.get(3),
                state: row.get(4),
                superuser: row.get(5),
                is_client: row.get(6),
            })
            .collect())
    }

    /// What keeps a database from being dropped or renamed even when its sessions are ended:
    /// prepared transactions, logical replication slots, subscriptions; each named, with what ends it.
    ///
    /// # Errors
    /// When the server doesn't answer.
    pub async fn blockers(&self, database: &str) -> Result<Vec<Blocker>, Failure> {
        let rows = self
            .rows(
                "look for prepared transactions and replication slots",
                "SELECT 'prepared transaction', gid, 'ROLLBACK PREPARED ' || quote_literal(gid), true \
                   FROM pg_catalog.pg_prepared_xacts WHERE database = $1 \
                 UNION ALL \
                 SELECT 'logical replication slot', slot_name, \
                        'SELECT pg_drop_replication_slot(' || quote_literal(slot_name) || ')', active \
                   FROM pg_catalog.pg_replication_slots WHERE database = $1 AND slot_type = 'logical' \
                 ORDER BY 1, 2",
                &[&database],
            )
            .await?;
        Ok(rows.iter().map(|row| Blocker { kind: row.get(0), name: row.get(1), remedy: row.get(2) }).collect())
    }

    /// Whether a transaction committed, by its id from `pg_current_xact_id()`.
    ///
    /// # Errors
    /// When the server doesn't answer, or says that the id lies in the future (it is another server then).
    pub async fn transaction_status(&self, id: &str) -> Result<TransactionStatus, Failure> {
        let sql = "SELECT pg_xact_status($1::text::xid8)";
        let row = self.row(format!("ask what became of transaction {id}"), sql, &[&id]).await?;
        Ok(match row.get::<_, Option<&str>>(0) {
            Some("committed") => TransactionStatus::Committed,
            Some("aborted") => TransactionStatus::Aborted,
            Some(_) => TransactionStatus::InProgress,
            None => TransactionStatus::Forgotten,
        })
    }
}

/// Something that even ended sessions leave in the way of DROP and RENAME.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocker {
    /// What it is.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// The statement that removes it, for a person to judge.
    pub remedy: String,
}

/// What became of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransactionStatus {
    /// It took effect.
    Committed,
    /// It did not.
    Aborted,
    /// It is not over.
    InProgress,
    /// The server keeps no record so old.
    Forgotten,
}

fn database(row: &Row) -> Database {
    Database {
        oid: row.get(0),
        name: row.get(1),
        owner: row.get(2),
        owned: row.get(3),
        encoding: row.get(4),
        collate: row.get(5),
        ctype: row.get(6),
        size: row.get::<_, Option<i64>>(7).map(i64::unsigned_abs),
        allow_connections: row.get(8),
        connection_limit: row.get(9),
        is_template: row.get(10),
        acl: row.get(11),
        comment: row.get(12),
    }
}
