//! A restore for the sake of the proof: into a database of the step's own, dropped afterwards.

use super::fill::drop_working;
use super::{From, Owner, Restore, working_name};
use crate::dump::proof::Proof;
use crate::failure::Failure;
use crate::service::postgres::tool::Version;
use crate::service::postgres::{Server, Session};
use crate::service::storage::Storage;
use crate::step::RunCx;
use crate::step::storage::Place;

impl Restore {
    /// A restore of the object at `from` into a database that bears this run's and this step's name.
    pub(in crate::step::postgres) fn throwaway(target: &str, from: &Place, cx: &RunCx) -> Self {
        Self {
            target: target.to_owned(),
            database: working_name(cx),
            from: From { storage: from.storage.clone(), path: from.path.clone(), database: None },
            create: true,
            jobs: Some(1),
            schemas: Vec::new(),
            tables: Vec::new(),
            analyze: false,
            owner: Owner::Keep,
        }
    }

    /// The database's name.
    pub(in crate::step::postgres) fn name(&self) -> &str {
        &self.database
    }

    /// Makes the database and fills it.
    pub(in crate::step::postgres) async fn make_throwaway(
        &self,
        server: &Server,
        storage: &Storage,
        proof: &Proof,
        version: Version,
        cx: &RunCx,
    ) -> Result<(), Failure> {
        self.create(&server.connect(None).await?, &self.database, proof, cx).await?;
        self.load(server, storage, proof, version, (&self.database, 1), cx).await
    }

    /// Drops the database, if it is there.
    pub(in crate::step::postgres) async fn drop_throwaway(
        &self,
        server: &Server,
        session: &Session,
    ) -> Result<(), Failure> {
        drop_working(server, session, &self.database).await
    }
}
