//! Finding, holding and messaging runs.

use super::*;
use crate::record::event::Event;
use crate::record::inbox::{Letter, Message};

fn store() -> (tempfile::TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().join("state").to_str().unwrap()).unwrap();
    (folder, store)
}

fn begin(store: &Store, id: &str, second: i64) -> OpenRun {
    let at = Timestamp::from_second(second).unwrap();
    let claim = store.claim(Some(&RunId::parse(id).unwrap()), at).unwrap();
    let mut run = claim.begin(&Copies::default()).unwrap();
    run.journal.append(vec![Event::Noticed { step: None, message: String::new() }], at).unwrap();
    run
}

#[test]
fn a_run_is_found_by_what_begins_its_id_and_the_latest_by_nothing() {
    let (_folder, store) = store();
    assert!(matches!(store.find(None), Err(StoreError::None(_))));
    for (id, second) in [("drill", 30), ("20260101-babo", 20), ("20260101-baba", 10)] {
        begin(&store, id, second);
    }
    let found = |prefix| store.find(prefix).map(|run| run.id.to_string());
    assert_eq!(found(None).unwrap(), "drill", "the latest began last, whatever it is called");
    assert_eq!(found(Some("20260101-babo")).unwrap(), "20260101-babo");
    assert_eq!(found(Some("dr")).unwrap(), "drill");
    let ambiguous = found(Some("2026")).unwrap_err();
    assert!(ambiguous.to_string().contains("20260101-babo, 20260101-baba"), "{ambiguous}");
    assert!(matches!(found(Some("x")), Err(StoreError::Unknown { .. })));
}

#[test]
fn an_id_is_used_once_and_a_run_held_once() {
    let (_folder, store) = store();
    let run = begin(&store, "r", 0);
    let id = RunId::parse("r").unwrap();
    assert!(matches!(store.claim(Some(&id), Timestamp::now()), Err(StoreError::Locked { .. })));
    let refused = run.folder.open(Timestamp::now()).unwrap_err();
    assert!(refused.to_string().contains("for run r, since 1970-01-01 00:00:00Z"), "{refused}");
    assert!(run.folder.holder().unwrap().is_some());
    let folder = run.folder.clone();
    drop(run);
    assert_eq!(folder.holder().unwrap(), None);
    assert!(matches!(store.claim(Some(&id), Timestamp::now()), Err(StoreError::Exists(_))));
}

#[test]
fn whoever_begins_in_the_same_second_gets_an_id_of_its_own() {
    let (_folder, store) = store();
    // Of 4,900 pairs of syllables 300 draw one twice for certain, as good as (1 in 9,000 that none does).
    let claims: Vec<_> = (0..300).map(|_| store.claim(None, Timestamp::UNIX_EPOCH).unwrap()).collect();
    let ids: std::collections::BTreeSet<_> = claims.iter().map(|claim| claim.id().clone()).collect();
    assert_eq!(ids.len(), claims.len());
    drop(claims);
    let left = std::fs::read_dir(store.root().join("runs")).unwrap().count();
    assert_eq!(left, 0, "what didn't begin leaves nothing");
}

#[test]
fn an_id_that_no_run_began_with_is_taken_again() {
    let (_folder, store) = store();
    let (id, now) = (RunId::parse("nightly").unwrap(), Timestamp::now());
    let claim = store.claim(Some(&id), now).unwrap();
    let held = store.claim(Some(&id), now).unwrap_err();
    assert!(matches!(held, StoreError::Locked { .. }), "another process is about to begin: {held}");
    // Killed with its copies kept and a first record that was cut off.
    let run = claim.begin(&Copies { environment: Some("old".to_owned()), ..Copies::default() }).unwrap();
    std::fs::write(run.folder.journal_path(), "{\"seq\":0,").unwrap();
    drop(run);
    let run = store.claim(Some(&id), now).unwrap().begin(&Copies::default()).unwrap();
    assert!(!run.folder.environment_copy().exists(), "nothing of the other is left");
    std::fs::write(run.folder.journal_path(), "what nobody can read\n").unwrap();
    drop(run);
    assert!(matches!(store.claim(Some(&id), now), Err(StoreError::Exists(_))), "damage is kept");
}

#[test]
fn a_name_that_nothing_can_be_made_under_is_no_endless_search() {
    let (_folder, store) = store();
    let runs = store.root().join("runs");
    std::fs::create_dir_all(&runs).unwrap();
    std::os::unix::fs::symlink("/nowhere/at/all", runs.join("nightly")).unwrap();
    let refused = store.claim(Some(&RunId::parse("nightly").unwrap()), Timestamp::now()).unwrap_err();
    assert!(matches!(refused, StoreError::Io { .. }), "{refused}");
}

#[test]
fn of_many_that_want_one_id_at_once_one_gets_it() {
    let (_folder, store) = store();
    let (id, now) = (RunId::parse("nightly").unwrap(), Timestamp::now());
    for round in 0..20 {
        // Each other round begins with what somebody left who was killed.
        let left = store.root().join("runs/nightly");
        if round % 2 == 0 {
            std::fs::create_dir_all(&left).unwrap();
            std::fs::write(left.join("run.json"), "{}").unwrap();
        }
        let barrier = std::sync::Barrier::new(4);
        let got: Vec<_> = std::thread::scope(|scope| {
            let one = || {
                barrier.wait();
                store.claim(Some(&id), now)
            };
            let all: Vec<_> = (0..4).map(|_| scope.spawn(one)).collect();
            all.into_iter().map(|one| one.join().unwrap()).collect()
        });
        let refused = got.iter().filter(|got| matches!(got, Err(StoreError::Locked { .. }))).count();
        assert_eq!((got.iter().filter(|got| got.is_ok()).count(), refused), (1, 3), "{got:?}");
        assert!(!left.join("run.json").exists());
    }
}

#[test]
fn copies_keep_their_places_to_each_other() {
    let (folder, store) = store();
    let main = folder.path().join("plans/recovery/main.yaml");
    let sub = folder.path().join("plans/shared/sub.yaml");
    let copies = Copies {
        plan: main.clone(),
        plans: vec![(main, "main".to_owned()), (sub, "sub".to_owned())],
        environment: Some("env".to_owned()),
        inputs: [("backup".to_owned(), Value::from("latest"))].into(),
    };
    let run = store.claim(None, Timestamp::now()).unwrap().begin(&copies).unwrap();
    let copy = run.folder.plan_copy().unwrap();
    assert!(copy.ends_with("plan/recovery/main.yaml"));
    assert_eq!(std::fs::read_to_string(&copy).unwrap(), "main");
    assert_eq!(std::fs::read_to_string(copy.parent().unwrap().join("../shared/sub.yaml")).unwrap(), "sub");
    assert_eq!(std::fs::read_to_string(run.folder.environment_copy()).unwrap(), "env");
    assert_eq!(run.folder.manifest().unwrap().inputs, copies.inputs);
}

#[test]
fn messages_arrive_in_order_and_damaged_ones_are_said() {
    let (_folder, store) = store();
    let folder = begin(&store, "r", 0).folder;
    // The clock was set back between the two.
    for (second, by) in [(7200, "maria"), (2, "ben")] {
        let message = Message::Pause { by: by.to_owned(), because: None };
        folder.send(&message, Timestamp::from_second(second).unwrap()).unwrap();
    }
    std::fs::write(folder.path().join("inbox/9.json"), "{").unwrap();
    let letters = folder.receive().unwrap();
    let by = |letter: &Letter| match &letter.message {
        Ok(Message::Pause { by, .. }) => by.clone(),
        other => format!("{}", other.is_err()),
    };
    assert_eq!(letters.iter().map(by).collect::<Vec<_>>(), ["maria", "ben", "true"]);
    for letter in letters {
        letter.done().unwrap();
    }
    assert!(folder.receive().unwrap().is_empty());
}

#[test]
fn a_word_to_stop_is_for_the_process_that_worked_when_it_was_sent() {
    let (_folder, store) = store();
    let pause = || Message::Pause { by: "maria".to_owned(), because: None };
    // Whatever the clocks of the two processes, and of who sends, show.
    for (earlier, sent, later) in [(100, 50, 70), (100, 200, 70), (100, 200, 300), (100, 110, 90)] {
        let name = format!("r-{earlier}-{sent}-{later}");
        let first = begin(&store, &name, earlier);
        first.folder.send(&pause(), Timestamp::from_second(sent).unwrap()).unwrap();
        let folder = first.folder.clone();
        let for_this = |folder: &RunFolder| {
            let this = folder.holder().unwrap().unwrap().unwrap();
            folder.receive().unwrap().iter().map(|letter| !letter.is_stale(&this)).collect::<Vec<_>>()
        };
        assert_eq!(for_this(&folder), [true], "{name}");
        drop(first);
        let _second = folder.lock(Timestamp::from_second(later).unwrap()).unwrap();
        assert_eq!(for_this(&folder), [false], "{name}");
        folder.send(&pause(), Timestamp::from_second(sent).unwrap()).unwrap();
        assert_eq!(for_this(&folder), [false, true], "{name}");
    }
}

#[test]
fn state_in_a_database_is_refused_and_its_url_not_repeated() {
    let refused = Store::open("postgres://x:secret@db/state").unwrap_err();
    assert!(!refused.to_string().contains("secret"), "{refused}");
}
