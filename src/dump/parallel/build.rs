//! Indexes, keys and foreign keys, several at a time: each transaction builds one, or
//! several of small tables, and what an earlier attempt built is known by its name.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use futures::StreamExt;
use futures::stream::FuturesUnordered;

use super::super::outline::Name;
use super::order::Build;
use super::split::Settings;
use super::{Parallel, Stage, connect};
use crate::failure::Failure;
use crate::kill;
use crate::service::postgres::Session;

/// How many statements one transaction takes, where tables are small.
const STATEMENTS: usize = 32;

/// How often a statement is tried that another one's locks keep from running.
const TRIES: usize = 5;

/// Builds what it is given.
pub struct Builder<'a> {
    of: &'a Parallel<'a>,
    idle: Vec<Idle>,
    /// How many may build at once: what keeps the processor busy, and what rather waits for the disk.
    jobs: usize,
    small_jobs: usize,
    /// What an earlier attempt built: schema, table, name; and whether it was validated.
    there: BTreeMap<(String, String, String), bool>,
    /// Whether there was an earlier attempt.
    resumed: bool,
    done: u64,
    total: u64,
}

/// A session with nothing to do.
struct Idle {
    session: Session,
    /// What it was told with SET, of the dump's settings.
    applied: Settings,
    /// And of how it sorts.
    sorting: Sorting,
}

impl Idle {
    /// Tells the session how to sort, if it was told otherwise.
    async fn sort(mut self, sorting: Sorting, jobs: usize) -> Result<Self, Failure> {
        if self.sorting != sorting {
            let as_set =
                format!("RESET maintenance_work_mem; RESET max_parallel_maintenance_workers; {}", memory(jobs));
            let sql = match sorting {
                Sorting::AsSet => as_set,
                Sorting::Alone(kib) => format!(
                    "{as_set}; SET max_parallel_maintenance_workers = 0; \
                     SELECT pg_catalog.set_config('maintenance_work_mem', least({kib}, setting::bigint)::text, false) \
                       FROM pg_catalog.pg_settings WHERE name = 'maintenance_work_mem'"
                ),
            };
            self.session.batch("set up the session", &sql).await?;
            self.sorting = sorting;
        }
        Ok(self)
    }
}

/// How a session sorts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sorting {
    /// As [`memory`] says, and with workers of the server's own.
    AsSet,
    /// In so many KiB, or less where less is set, and on one core.
    Alone(u64),
}

impl Sorting {
    /// For these builds, while `busy` connections of `jobs` build at once.
    ///
    /// The server's own workers cost more than they give as long as all cores are busy. And a sort in memory that a
    /// processor's cache holds takes less than one in much, merged twice as well: a B-tree of 7 million texts of 32 bytes
    /// took 7.2 s of the server's time in 4 MB, 8.5 in 8 MB, 9.6 in 13 MB, which is enough to merge once, and 10.5 in
    /// 26 MB; one of 1.7 million 1.8 s in 4 MB, 2.0 in 8 MB and 3.6 in 256 MB, on PostgreSQL 15. (On a slower machine
    /// 5.2 s in 8 MB, and 6.0 to 8.1 s in 256 MB with workers.) Numbers and uuids took as long either way.
    fn of(builds: &[Build], busy: usize, jobs: usize) -> Self {
        let [build] = builds else { return Self::AsSet };
        match build.rows {
            Some(rows) if build.is_sorted() && 2 * busy > jobs.max(2) => Self::Alone(two_merges(rows)),
            _ => Self::AsSet,
        }
    }
}

/// The least memory, in KiB, that sorts so many rows in two merges: PostgreSQL merges as many runs at once as it has
/// 264 KiB for (`MERGE_BUFFER_SIZE` and `TAPE_BUFFER_OVERHEAD` in its `tuplesort.c`), each as long as its memory.
fn two_merges(rows: u64) -> u64 {
    // What a row takes there, roughly.
    const ROW: f64 = 100.0;
    let least = (rows as f64 * ROW / 1024.0 * 264.0 * 264.0).cbrt() as u64;
    // A part of a run's memory is of no use.
    (least + 264).max(4 << 10)
}

/// What is built in one transaction.
#[derive(Default)]
struct Batch {
    builds: Vec<Build>,
    /// The tables that nothing else may be done with meanwhile.
    locks: BTreeSet<Name>,
}

impl Batch {
    fn add(&mut self, build: Build) {
        self.locks.extend(build.locks.iter().cloned());
        self.builds.push(build);
    }

    /// Whether it takes next to nothing but its wait for the disk.
    fn is_small(&self) -> bool {
        self.builds.iter().all(Build::is_small)
    }

    /// Whether it can't be done beside another one.
    fn conflicts(&self, other: &Self) -> bool {
        let alone = |batch: &Self| batch.builds.iter().any(|build| build.alone);
        let share = |batch: &Self| batch.builds.iter().all(|build| build.shares);
        let apart = self.locks.is_disjoint(&other.locks) || (share(self) && share(other));
        alone(self) || alone(other) || !apart
    }

    /// Small tables' builds together, in their order; all others by themselves.
    fn batches(builds: Vec<Build>) -> VecDeque<Self> {
        let mut batches = VecDeque::new();
        let mut small = Self::default();
        for build in builds {
            if !build.is_small() || build.alone {
                let mut large = Self::default();
                large.add(build);
                batches.push_back(large);
                continue;
            }
            let full = small.builds.len() >= STATEMENTS;
            let other = small.builds.last().is_some_and(|last| last.statement.settings != build.statement.settings);
            if full || other {
                batches.push_back(std::mem::take(&mut small));
            }
            small.add(build);
        }
        if !small.builds.is_empty() {
            batches.push_back(small);
        }
        batches
    }
}

impl<'a> Builder<'a> {
    pub async fn new(of: &'a Parallel<'a>, total: u64) -> Result<Self, Failure> {
        let most = |jobs: usize| jobs.min(usize::try_from(total).unwrap_or(usize::MAX));
        let (jobs, small_jobs) = (most(of.jobs), most(of.small_jobs));
        let resumed = !of.done.is_nothing();
        let (idle, there) = (vec![], BTreeMap::new());
        let mut builder = Self { of, idle, jobs, small_jobs, there, resumed, done: 0, total };
        if total > 0 {
            let first = builder.open().await?;
            if resumed {
                builder.there = built(&first.session).await?;
            }
            builder.idle.push(first);
        }
        Ok(builder)
    }

    async fn open(&self) -> Result<Idle, Failure> {
        let session = connect(self.of.server, self.of.database).await?;
        // The last transaction waits for the disk, and for all before it.
        session.batch("set up the session", "SET synchronous_commit = off").await?;
        session.batch("set up the session", &memory(self.of.jobs)).await?;
        Ok(Idle { session, applied: Settings::default(), sorting: Sorting::AsSet })
    }

    /// Builds all of it, in any order.
    pub async fn indexes(&mut self, builds: Vec<Build>) -> Result<(), Failure> {
        let builds = builds.into_iter().filter(|build| self.is_missing(build, false)).collect();
        self.run(builds, false).await
    }

    /// Makes foreign keys, those of one table in their order. To look through the rows takes long, and locks little:
    /// that comes apart, side by side also for those that refer to one table.
    pub async fn foreign_keys(&mut self, builds: Vec<Build>) -> Result<(), Failure> {
        let partitioned = match self.idle.first() {
            Some(Idle { session, .. }) => partitioned(session).await?,
            None => BTreeSet::new(),
        };
        let (mut made, mut looked_through) = (vec![], vec![]);
        for mut build in builds {
            if !build.is_small()
                && let Some(look) = build.apart(&partitioned)
            {
                if self.is_missing(&look, true) {
                    looked_through.push(look);
                }
                // Counted once it is validated.
                if self.knows(&build).is_some() {
                    continue;
                }
                build.counts = false;
                made.push(build);
            } else if self.is_missing(&build, false) {
                made.push(build);
            }
        }
        self.run(made, true).await?;
        looked_through.sort_by_key(|build| std::cmp::Reverse(build.rows));
        self.run(looked_through, false).await
    }

    async fn run(&mut self, builds: Vec<Build>, in_order: bool) -> Result<(), Failure> {
        let mut waiting = Batch::batches(builds);
        let mut running: Vec<(usize, Arc<Batch>)> = vec![];
        let mut answers = FuturesUnordered::new();
        let mut next = 0;
        while !waiting.is_empty() || !running.is_empty() {
            while let Some(at) = ready(&waiting, &running, in_order)
                && running.len() < if waiting[at].is_small() { self.small_jobs } else { self.jobs }
                && let Some(batch) = waiting.remove(at)
            {
                let idle = match self.idle.pop() {
                    Some(idle) => idle,
                    None => self.open().await?,
                };
                if let Some(build) = batch.builds.first() {
                    let what = format!("{} of {}", build.name, build.table.1);
                    self.of.journal.progress(Stage::Built { done: self.done, total: self.total, what });
                }
                let busy = self.jobs.min(1 + running.len() + beside(&batch, &waiting, &running));
                let sorting = Sorting::of(&batch.builds, busy, self.of.jobs);
                let batch = Arc::new(batch);
                running.push((next, batch.clone()));
                let (number, resumed, allowed) = (next, self.resumed, self.of.jobs);
                answers.push(async move {
                    let idle = idle.sort(sorting, allowed).await?;
                    Ok::<_, Failure>((number, build(idle, &batch.builds, resumed).await?))
                });
                next += 1;
            }
            let Some(answer) = answers.next().await else { break };
            let (number, idle) = answer?;
            self.idle.push(idle);
            let ended = running.iter().position(|(own, _)| *own == number).map(|at| running.swap_remove(at));
            let counts = ended.map_or(0, |(_, batch)| batch.builds.iter().filter(|build| build.counts).count());
            self.done += counts as u64;
        }
        Ok(())
    }

    /// Whether it must be built still; what needn't counts as done.
    fn is_missing(&mut self, build: &Build, validated: bool) -> bool {
        let there = self.knows(build).is_some_and(|is| is || !validated);
        self.done += u64::from(there);
        !there
    }

    /// Whether an earlier attempt validated it, if it built it.
    fn knows(&self, build: &Build) -> Option<bool> {
        let (schema, table) = &build.table;
        // Without its schema it isn't known which one is meant: it is built, and the server says if it is there.
        self.there.get(&(schema.clone()?, table.clone(), build.name.clone())).copied()
    }
}

/// Builds all of it in one transaction; if that fails, one after the other, so that each is told by its own words.
async fn build(mut idle: Idle, builds: &[Build], resumed: bool) -> Result<Idle, Failure> {
    let Idle { session, applied, .. } = &mut idle;
    // All of a batch have the same.
    if let Some(first) = builds.first()
        && *applied != first.statement.settings
    {
        first.statement.settings.apply(session).await?;
        *applied = first.statement.settings.clone();
    }
    if builds.len() > 1 {
        let all: Vec<&str> = builds.iter().map(|build| build.statement.text.as_str()).collect();
        match kill::around("build", session.batch_execute(&all.join("\n"))).await {
            Ok(()) => return Ok(idle),
            // One of them is why; not so when the server was told to stop, or is gone.
            Err(error) if error.code().is_some_and(|code| code.code() != "57014") => {}
            Err(error) => return Err(session.failure(format!("build {} indexes and keys", all.len()), &error)),
        }
    }
    for build in builds {
        let mut tries = 0;
        while let Err(error) = kill::around("build", session.batch_execute(&build.statement.text)).await {
            let code = error.code().map_or("", |code| code.code());
            // An earlier attempt built it, under a name whose schema the dump leaves open.
            if resumed && build.table.0.is_none() && ["42P07", "42710", "42P16"].contains(&code) {
                break;
            }
            tries += 1;
            if code != "40P01" || tries == TRIES {
                let attempted = format!("line {}: {}", build.statement.line, build.statement.beginning());
                return Err(session.failure(attempted, &error));
            }
        }
    }
    Ok(idle)
}

/// How many of those that wait may run beside this one and those that do, each by itself.
fn beside(batch: &Batch, waiting: &VecDeque<Batch>, running: &[(usize, Arc<Batch>)]) -> usize {
    let fits =
        |other: &&Batch| !other.conflicts(batch) && running.iter().all(|(_, running)| !other.conflicts(running));
    waiting.iter().filter(fits).count()
}

/// The first that may run beside those that do.
fn ready(waiting: &VecDeque<Batch>, running: &[(usize, Arc<Batch>)], in_order: bool) -> Option<usize> {
    (0..waiting.len()).find(|at| {
        let batch = &waiting[*at];
        let beside = running.iter().all(|(_, other)| !batch.conflicts(other));
        beside && (!in_order || waiting.iter().take(*at).all(|earlier| !batch.conflicts(earlier)))
    })
}

/// Tables with partitions, by schema and name: a foreign key of or to one is made and validated at once, since
/// PostgreSQL takes no `NOT VALID` there, or keeps it for the partitions.
async fn partitioned(session: &Session) -> Result<BTreeSet<(String, String)>, Failure> {
    let sql = "SELECT n.nspname::text, c.relname::text FROM pg_catalog.pg_class c \
                 JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'p'";
    let found = session.rows("look which tables have partitions", sql, &[]).await?;
    Ok(found.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Indexes and constraints that are there, and whether they are validated. Each was built in one transaction: none
/// is there by halves.
async fn built(session: &Session) -> Result<BTreeMap<(String, String, String), bool>, Failure> {
    let attempted = "look what an earlier attempt built";
    let sql = "SELECT n.nspname::text, t.relname::text, i.relname::text, true \
                 FROM pg_catalog.pg_index x JOIN pg_catalog.pg_class i ON i.oid = x.indexrelid \
                 JOIN pg_catalog.pg_class t ON t.oid = x.indrelid JOIN pg_catalog.pg_namespace n ON n.oid = t.relnamespace \
                WHERE n.nspname <> 'pg_catalog' AND n.nspname <> 'pg_toast' \
                  AND NOT EXISTS (SELECT FROM pg_catalog.pg_constraint c WHERE c.conindid = x.indexrelid AND c.contype IN ('p', 'u', 'x')) \
               UNION ALL \
               SELECT n.nspname::text, t.relname::text, c.conname::text, c.convalidated \
                 FROM pg_catalog.pg_constraint c JOIN pg_catalog.pg_class t ON t.oid = c.conrelid \
                 JOIN pg_catalog.pg_namespace n ON n.oid = t.relnamespace \
                WHERE c.contype IN ('p', 'u', 'x', 'f')";
    let found = session.rows(attempted, sql, &[]).await?;
    Ok(found.iter().map(|row| ((row.get(0), row.get(1), row.get(2)), row.get(3))).collect())
}

/// More memory for sorting than most servers give, as long as few connections take it.
fn memory(jobs: usize) -> String {
    if jobs > 4 {
        return String::new();
    }
    "SELECT pg_catalog.set_config('maintenance_work_mem', '262144', false) \
       FROM pg_catalog.pg_settings WHERE name = 'maintenance_work_mem' AND setting::bigint < 262144 \
        AND (SELECT setting::bigint * 8 >= 131072 FROM pg_catalog.pg_settings WHERE name = 'shared_buffers')"
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::super::super::outline::part;
    use super::*;
    use crate::dump::parallel::split::Statement;

    fn index(rows: Option<u64>, text: &str) -> Build {
        let statement = Statement {
            text: text.to_owned(),
            line: 1,
            part: part(text.as_bytes()),
            settings: Settings::default(),
        };
        let table = (Some("a".to_owned()), "t".to_owned());
        let locks = vec![table.clone()];
        let (name, shares, alone, counts) = ("i".to_owned(), true, false, true);
        Build { statement, table, name, locks, shares, alone, rows, counts }
    }

    #[test]
    fn sorts_take_little_memory_while_all_connections_are_busy() {
        let million = Some(1_000_000);
        let sorted = [
            "CREATE INDEX i ON a.t USING btree (b);",
            "ALTER TABLE ONLY a.t ADD CONSTRAINT i PRIMARY KEY (b);",
            "ALTER TABLE ONLY a.t ADD CONSTRAINT i UNIQUE (b);",
        ];
        for text in sorted {
            assert_eq!(Sorting::of(&[index(million, text)], 2, 2), Sorting::Alone(4 << 10), "{text}");
        }
        for (builds, busy, jobs) in [
            (vec![index(million, "CREATE INDEX i ON a.t USING gin (b);")], 2, 2),
            (vec![index(million, "ALTER TABLE a.t ADD CONSTRAINT i EXCLUDE USING gist (b WITH =);")], 2, 2),
            (vec![index(None, sorted[0])], 2, 2),
            (vec![index(million, sorted[0]), index(million, sorted[1])], 2, 2),
            // Cores would stand idle.
            (vec![index(million, sorted[0])], 1, 2),
            (vec![index(million, sorted[0])], 1, 1),
            (vec![index(million, sorted[0])], 2, 4),
        ] {
            assert_eq!(Sorting::of(&builds, busy, jobs), Sorting::AsSet, "{builds:?}");
        }
    }

    #[test]
    fn what_must_wait_for_a_build_keeps_no_core_busy_meanwhile() {
        let key = || {
            let text = "ALTER TABLE ONLY a.t ADD CONSTRAINT i UNIQUE (b);";
            let mut batch = Batch::default();
            batch.add(Build { shares: false, ..index(Some(1_000_000), text) });
            batch
        };
        let other = || {
            let mut batch = key();
            batch.locks = BTreeSet::from([(Some("a".to_owned()), "other".to_owned())]);
            batch
        };
        assert_eq!(beside(&key(), &VecDeque::from([key(), key()]), &[]), 0);
        assert_eq!(beside(&key(), &VecDeque::from([key(), other()]), &[]), 1);
        assert_eq!(beside(&key(), &VecDeque::from([key(), other()]), &[(0, Arc::new(other()))]), 0);
    }

    #[test]
    fn a_sort_takes_as_much_as_two_merges_of_its_runs_need() {
        for rows in [1, 1_000_000, 100_000_000, 100_000_000_000] {
            let kib = two_merges(rows);
            let (runs, most) = (rows * 100 / 1024 / kib, kib / 264);
            assert!(kib >= 4 << 10 && runs <= most * most, "{rows} in {kib} KiB: {runs} runs, {most} at once");
        }
        assert_eq!([1_000_000, 100_000_000].map(two_merges), [4096, 9060]);
        assert!(two_merges(u64::MAX) > two_merges(100_000_000_000));
    }
}
