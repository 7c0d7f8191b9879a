//! What would keep a backup from coming about, seen before anything is touched.

use super::Backup;
use super::restored::Proving;
use crate::dump::compression::Compression;
use crate::dump::count::tables;
use crate::failure::Failure;
use crate::service::postgres::{Server, Session};
use crate::service::storage::Storage;
use crate::step::postgres::{counted, name_some};
use crate::step::{Action, Preview};
use crate::units::Size;

impl Backup {
    /// Adds what would keep the backup from coming about.
    pub(super) async fn prove(
        &self,
        server: &Server,
        session: &Session,
        storage: &Storage,
        preview: Preview,
    ) -> Result<Preview, Failure> {
        let major = session.server_facts().await?.version.major;
        let all = tables(session).await?;
        let chosen = self.chosen_tables(&all)?;
        let size: u64 = chosen.iter().map(|table| table.bytes).sum();
        let mut preview = Preview {
            action: Action::Create,
            summary: format!("{} ({}, {})", preview.summary, Size(size), counted(chosen.len() as u64, "table")),
            ..preview
        };
        let left_out = self.left_out(session, &all).await?;
        if !left_out.is_empty() {
            let message = format!(
                "the backup can't be restored by itself: it leaves out what it needs: {}",
                name_some(&left_out)
            );
            let help = "back up the database whole: `postgres.restore` takes `schemas` and `tables` out of that";
            preview = if self.verify == Proving::Restore {
                preview.blocked(message, help.to_owned())
            } else {
                preview.warning(message, help.to_owned())
            };
        }
        for name in ["pg_dump", "pg_restore"].into_iter().chain(self.globals.then_some("pg_dumpall")) {
            if let Err(failure) = server.tool(name, major).await {
                preview = preview.blocked(failure.message, failure.help);
            }
        }
        let hidden = self.unreadable(session).await?;
        if !hidden.is_empty() {
            preview = preview.blocked(
                format!("role {} may not read all of {}: {}", server.user(), self.database, hidden.join(", ")),
                "use a role that may read every row (a superuser, or pg_read_all_data with BYPASSRLS)".to_owned(),
            );
        }
        if self.globals && !session.role().await?.superuser {
            preview = preview.blocked(
                "only a superuser may read the roles' passwords, which `globals` writes".to_owned(),
                "use a superuser, or leave `globals` out".to_owned(),
            );
        }
        if self.verify == Proving::Restore {
            let role = session.role().await?;
            if !role.superuser && !role.create_db {
                preview = preview.blocked(
                    format!("role {} may not create the database that `verify: restore` restores into", role.name),
                    "give it CREATEDB, or let the backup be read back only (`verify: read`)".to_owned(),
                );
            }
            let standby = session.row("ask whether it is a standby", "SELECT pg_is_in_recovery()", &[]).await?;
            if standby.get(0) {
                preview = preview.blocked(
                    format!("{} is a standby, where no database can be made for `verify: restore`", self.target),
                    "take the backup there with `verify: read`, and restore it on another server".to_owned(),
                );
            }
        }
        if storage.stat(&self.to.path).await?.is_some() {
            preview = preview.blocked(
                format!("{} is there already in {}", self.to.path, self.to.storage),
                "objects are never overwritten: put the time into the path".to_owned(),
            );
        }
        // A dump is seldom larger than its tables; compressed, a fifth of them is usual.
        let need = if self.chosen().1 == Compression::None { size } else { size / 5 };
        if let Some(free) = storage.free_space().filter(|free| *free < need) {
            preview = preview.blocked(
                format!("{} has {} free; the backup may need {}", self.to.storage, Size(free), Size(need)),
                "make room there".to_owned(),
            );
        }
        Ok(preview)
    }

    /// Tables that the role may not read, or not all rows of: at most five.
    pub(super) async fn unreadable(&self, session: &Session) -> Result<Vec<String>, Failure> {
        let role = session.role().await?;
        let sql = "SELECT format('%I.%I', n.nspname, c.relname) \
                   FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
                   WHERE c.relkind IN ('r', 'p', 'S') AND c.relpersistence <> 't' \
                     AND n.nspname <> 'information_schema' AND NOT starts_with(n.nspname, 'pg_') \
                     AND (NOT has_schema_privilege(n.oid, 'USAGE') \
                          OR (c.relkind <> 'S' AND NOT has_table_privilege(c.oid, 'SELECT')) \
                          OR (c.relkind = 'S' AND NOT has_sequence_privilege(c.oid, 'SELECT')) \
                          OR (c.relrowsecurity AND NOT $1 AND (c.relforcerowsecurity OR NOT pg_has_role(c.relowner, 'USAGE')))) \
                   ORDER BY 1 LIMIT 5";
        let rows = session.rows("look for tables that can't be read", sql, &[&role.bypass_rls]).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }
}
