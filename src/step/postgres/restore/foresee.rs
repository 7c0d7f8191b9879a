//! What would keep a restore from succeeding, seen before anything is touched.

use std::collections::{BTreeMap, BTreeSet};

use super::{Owner, Restore, content, not_empty};
use crate::dump::manifest::Format;
use crate::dump::proof::Proof;
use crate::failure::Failure;
use crate::service::postgres::{Server, Session, ident};
use crate::service::storage::{Storage, free_space};
use crate::step::effect::Resource;
use crate::step::postgres::restore_globals::roles_of;
use crate::step::postgres::{Outlook, blame, counted};
use crate::step::world::Fact;
use crate::step::{Preview, PreviewCx};
use crate::units::Size;

impl Restore {
    /// What the dump needs and the server doesn't have.
    pub(super) async fn fits_server(
        &self,
        session: &Session,
        proof: &Proof,
        roles_will_be: bool,
    ) -> Result<Vec<Failure>, Failure> {
        let mut missing = vec![];
        if !roles_will_be {
            // Policies and settings name theirs whoever owns the tables.
            let (access, settings): (Vec<_>, Vec<_>) = self.takes_over(proof).partition(|said| said.access);
            let settings = settings.into_iter().flat_map(|said| &said.roles);
            let named: BTreeSet<&String> = proof.survey.named_roles.iter().chain(settings).collect();
            let owners = proof.survey.roles.iter().filter(|_| self.owner == Owner::Keep);
            let access = access.into_iter().flat_map(|said| &said.roles);
            let wanted: Vec<&String> = named.iter().copied().chain(owners).chain(access).collect();
            let sql = "SELECT DISTINCT w FROM unnest($1::text[]) w WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = w) ORDER BY 1";
            let rows = session.rows("look for the dump's roles", sql, &[&wanted]).await?;
            if !rows.is_empty() {
                let roles: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
                let needed = roles.iter().any(|role| named.contains(role));
                let message = format!(
                    "`{}` gives objects to roles, or has policies or settings for them, that {} doesn't have: {}",
                    self.from.path,
                    self.target,
                    roles.join(", ")
                );
                let instead = if needed { "" } else { ", or set `owner: none`" };
                missing.push(
                    Failure::permanent(message)
                        .help(format!("create them in a step before (postgres.restore_globals){instead}")),
                );
            }
        }
        let wanted: Vec<&String> = proof.survey.extensions.iter().collect();
        let sql = "SELECT w FROM unnest($1::text[]) w WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_available_extensions WHERE name = w) ORDER BY 1";
        let rows = session.rows("look for the dump's extensions", sql, &[&wanted]).await?;
        if !rows.is_empty() {
            let extensions: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
            let message = format!(
                "`{}` needs extensions that {} can't install: {}",
                self.from.path,
                self.target,
                extensions.join(", ")
            );
            missing.push(Failure::permanent(message).help("install their packages on the server's host"));
        }
        Ok(missing)
    }

    /// Adds what would keep the server from taking the database.
    pub(super) async fn foresee_database(
        &self,
        cx: &PreviewCx<'_>,
        server: &Server,
        session: &Session,
        mut preview: Preview,
    ) -> Result<Preview, Failure> {
        if cx.is_unknown("/database") {
            return Ok(preview);
        }
        if session.server_facts().await?.in_recovery {
            preview = preview.blocked(
                format!("{} is a standby or recovers: nothing can be restored there", self.target),
                "point the target at the primary".to_owned(),
            );
        }
        let role = session.role().await?;
        if self.create && !role.create_db {
            preview = preview.blocked(
                format!("role {} may not create databases on {}", role.name, self.target),
                format!("ALTER ROLE {} CREATEDB, or use a role that may", ident(&role.name)),
            );
        }
        let outlook = Outlook::of(cx, Some(session), &self.target, &self.database).await?;
        preview.certainty = outlook.certainty();
        Ok(match outlook {
            Outlook::Absent { .. } | Outlook::Unseen if self.create => preview,
            Outlook::Made { .. } | Outlook::There { changed_by: Some(_), .. } if !self.create => preview,
            Outlook::There { database, .. } if !self.create => {
                let inside = server.connect(Some(&database.name)).await?;
                match content(&inside).await? {
                    Some(content) => {
                        let failure = not_empty(&self.database, &content);
                        preview.blocked(failure.message, failure.help)
                    }
                    None => preview,
                }
            }
            Outlook::Absent { because } => preview.blocked(
                format!(
                    "there is no database {} on {}{}",
                    self.database,
                    self.target,
                    blame(because.as_ref(), "removes it")
                ),
                "create it in a step before (postgres.create_database), or set `create: true`".to_owned(),
            ),
            Outlook::Made { by, .. } => preview.blocked(
                format!("database {} will exist{}", self.database, blame(Some(&by), "creates it")),
                "leave `create` out, or the step that creates it".to_owned(),
            ),
            Outlook::There { .. } => preview.blocked(
                format!("database {} exists on {}", self.database, self.target),
                "restore under another name and swap (postgres.swap_databases), or drop it in a step before"
                    .to_owned(),
            ),
            Outlook::Unseen => preview,
        })
    }

    /// Reads the dump whole and adds what it holds, and what would keep it from being restored.
    pub(super) async fn foresee_dump(
        &self,
        cx: &PreviewCx<'_>,
        server: &Server,
        session: &Session,
        storage: &Storage,
        mut preview: Preview,
    ) -> Result<Preview, Failure> {
        let version = session.server_facts().await?.version;
        let proof = match self.prove(server, storage, version, &|_, _| ()).await {
            Ok(proof) => proof,
            Err(failure) => return Ok(preview.blocked(failure.message, failure.help)),
        };
        if (proof.format == Format::Plain || !self.create)
            && let Err(failure) = server.tool("psql", 0).await
        {
            preview = preview.blocked(failure.message, failure.help);
        }
        // A step before may create roles or install extensions.
        let roles_will_be = cx.world.fact(&roles_of(&self.target)).is_some();
        let may_change = cx.world.touching(&Resource::server(&self.target)).is_some();
        for failure in self.fits_server(session, &proof, roles_will_be).await? {
            preview = if may_change {
                preview.warning(failure.message, failure.help)
            } else {
                preview.blocked(failure.message, failure.help)
            };
        }
        if let (None, Some(of)) = (&self.from.database, proof.database())
            && !self.database.starts_with(of)
        {
            preview = preview.warning(
                format!("{} is a backup of the database {of}, restored as {}", self.from.path, self.database),
                format!("say `from: {{ database: {of} }}` if that is meant"),
            );
        }
        if let Some(made) = self.makes_schemas(&proof) {
            preview = preview.warning(made, "grant there in a step after what its users need".to_owned());
        }
        if let Some(left) = self.unread(&proof) {
            preview =
                preview.warning(left, "look for `DATABASE` in the dump, and set it in a step after".to_owned());
        }
        for left in self.choice(&proof)?.into_iter().flat_map(|choice| choice.left_out) {
            preview =
                preview.warning(format!("left out: {left}"), "choose that, too, if the key is wanted".to_owned());
        }
        if self.jobs > Some(1)
            && proof.format != Format::Plain
            && storage.local_path(&self.from.path)?.is_none()
            && let Some(free) = free_space(&std::env::temp_dir())
            && free < proof.object.bytes
        {
            preview = preview.blocked(
                format!(
                    "`jobs` needs a copy of the archive ({}), but only {} are free in {}",
                    Size(proof.object.bytes),
                    Size(free),
                    std::env::temp_dir().display()
                ),
                "make room, point TMPDIR elsewhere, or set `jobs: 1`".to_owned(),
            );
        }
        let mut rows: BTreeMap<String, u64> = match &proof.manifest {
            Some(manifest) if self.is_whole() => manifest.tables.clone(),
            _ => self.chosen_rows(&proof)?,
        };
        let all: u64 = rows.values().sum();
        let tables = rows.len();
        let mut partitioned = proof.survey.outline.partitioned(&rows);
        if let Some(choice) = self.choice(&proof)? {
            partitioned.retain(|table, _| choice.has_rows_of(table));
        }
        rows.extend(partitioned);
        preview.summary = format!(
            "{} ({}, {}, {}, proven whole)",
            preview.summary,
            Size(proof.object.bytes),
            counted(tables as u64, "table"),
            counted(all, "row")
        );
        preview.facts.clear();
        let bytes = proof.object.bytes;
        Ok(preview
            .fact(self.resource(), Fact::Present { rows: Some(rows) })
            .output("rows", all)
            .output("bytes", bytes))
    }
}
