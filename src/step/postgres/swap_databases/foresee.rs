//! What a swap would do, and what would keep the server from doing it. Looks only.

use super::SwapDatabases;
use crate::failure::Failure;
use crate::service::postgres::{Session, ident};
use crate::step::effect::Resource;
use crate::step::postgres::{Outlook, blame, name_of, size_and_sessions};
use crate::step::world::Fact;
use crate::step::{Preview, PreviewCx, Step};

impl SwapDatabases {
    pub(super) async fn foresee(&self, cx: &PreviewCx<'_>) -> Result<Preview, Failure> {
        let resource = |name: &str| Resource::database(&self.target, name);
        let kept = self.keep.clone().unwrap_or_else(|| format!("{}_before_‹run.id›", self.live));
        let mut preview = Preview::from_effects(
            &self.effects(),
            format!("swap {} in for {}, kept as {kept}", self.replacement, self.live),
        );
        preview.outputs.extend(self.keep.iter().map(|keep| ("kept".to_owned(), keep.clone().into())));
        let session = match cx.services {
            Some(services) => {
                let server = services.postgres(&self.target)?;
                self.refuse_own(&server)?;
                Some(server.connect(None).await?)
            }
            None => None,
        };
        let look = async |name: &str| Outlook::of(cx, session.as_ref(), &self.target, name).await;
        let (live, replacement) = (look(&self.live).await?, look(&self.replacement).await?);
        preview.certainty =
            if session.is_some() { live.certainty().max(replacement.certainty()) } else { preview.certainty };
        for (name, outlook) in [(&self.live, &live), (&self.replacement, &replacement)] {
            if let Outlook::Absent { because } = outlook {
                preview = preview.blocked(
                    format!(
                        "there is no database {name} on {}{}",
                        self.target,
                        blame(because.as_ref(), "removes it")
                    ),
                    "check the names and the order of the steps".to_owned(),
                );
            }
        }
        if let Some(session) = &session {
            preview = self.prove(session, &look(&kept).await?, &live, &replacement, preview).await?;
        }
        // What is known of each stands under the name that it has today.
        let becomes = |outlook: &Outlook, name: &str| match outlook {
            Outlook::Made { rows, .. } => Fact::Present { rows: rows.clone() },
            Outlook::There { database, .. } => Fact::RenamedFrom(resource(&database.name)),
            _ => match cx.world.fact(&resource(name)).map(|foretold| &foretold.fact) {
                Some(Fact::RenamedFrom(today)) if name_of(today, &self.target).is_some() => {
                    Fact::RenamedFrom(today.clone())
                }
                _ => Fact::RenamedFrom(resource(name)),
            },
        };
        let (old, new) = (becomes(&live, &self.live), becomes(&replacement, &self.replacement));
        Ok(preview
            .fact(resource(&kept), old)
            .fact(resource(&self.replacement), Fact::Absent)
            .fact(resource(&self.live), new))
    }

    /// Adds sizes and sessions, and what would keep the server from doing it.
    async fn prove(
        &self,
        session: &Session,
        kept: &Outlook,
        live: &Outlook,
        replacement: &Outlook,
        mut preview: Preview,
    ) -> Result<Preview, Failure> {
        let role = session.role().await?;
        if let Outlook::Made { .. } | Outlook::There { .. } = kept {
            preview = preview.blocked(
                format!("there is a database {} already", self.keep.as_deref().unwrap_or_default()),
                "drop it in a step before (postgres.drop_database), or give another name as `keep`".to_owned(),
            );
        }
        if !role.create_db {
            preview = preview.blocked(
                format!("role {} may not rename databases on {}", role.name, self.target),
                format!("ALTER ROLE {} CREATEDB, or use a role that may", ident(&role.name)),
            );
        }
        for (outlook, is_live) in [(live, true), (replacement, false)] {
            let Outlook::There { database, .. } = outlook else { continue };
            if !database.owned {
                preview = preview.blocked(
                    format!("role {} does not own database {} ({} does)", role.name, database.name, database.owner),
                    "use the owner or a superuser in the target's url".to_owned(),
                );
            }
            for blocker in session.blockers(&database.name).await? {
                preview = preview.blocked(
                    format!(
                        "{} `{}` keeps database {} from being renamed",
                        blocker.kind, blocker.name, database.name
                    ),
                    format!("judge it, then: {}", blocker.remedy),
                );
            }
            let sessions = session.sessions_on(database.oid).await?;
            let clients: Vec<_> = sessions.iter().filter(|session| session.is_client).collect();
            if is_live {
                preview.summary = format!("{} ({})", preview.summary, size_and_sessions(database, &sessions));
            }
            if let Some(superuser) = clients.iter().find(|client| client.superuser && !role.superuser) {
                preview = preview.blocked(
                    format!("role {} may not end a superuser's session: {superuser}", role.name),
                    "end it by hand, or use a superuser in the target's url".to_owned(),
                );
            } else if let Some(other) =
                clients.iter().find(|client| client.user != role.name && !role.signal_backend)
            {
                preview = preview.blocked(
                    format!("role {} may not end another role's session: {other}", role.name),
                    format!("GRANT pg_signal_backend TO {}", ident(&role.name)),
                );
            }
        }
        Ok(preview)
    }
}
