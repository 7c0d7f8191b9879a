//! Runs a plan unbroken, then once for each point at which it is killed, and compares.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use serde_json::{Value, json};

use crate::stage::said;
use crate::world::{Case, World, run_id};

/// How often a run may be gone on with before that is a fault.
const TURNS: usize = 12;

/// What a run comes to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Way {
    /// It is killed, and gone on with until it is through.
    Resume,
    /// It ends by itself; then it is taken back, and that is killed.
    Undo,
    /// It is killed, and taken back at once.
    UndoAtOnce,
}

/// What came of a run that was brought to its end, in words that are the same in each world.
#[derive(Debug, PartialEq)]
struct End {
    report: Value,
    world: Value,
}

/// How it came to it.
struct Went {
    end: End,
    /// The points that each process passed.
    passed: Vec<Vec<String>>,
}

/// Whether all points are tried, not a sample.
pub fn all() -> bool {
    std::env::var_os("LIFEBOAT_KILL_ALL").is_some()
}

/// Kills the run at each point in turn (in a sample: at every `stride`-th).
pub fn every_point(case: &Case, stride: usize) {
    let (began, unbroken) = (Instant::now(), unbroken(case));
    let points = unbroken.points();
    let kills: Vec<_> = chosen(points.len(), stride).into_iter().map(|at| unbroken.kill(at)).collect();
    try_all(case, "killed once", &unbroken, points.len(), &kills, began);
}

/// Kills the run, and the resume that goes on with it.
pub fn twice(case: &Case, stride: usize) {
    let (began, unbroken) = (Instant::now(), unbroken(case));
    let points = unbroken.points().len();
    let kills = chosen(points, stride).into_iter().map(|first| {
        let mut kills = unbroken.kill(first);
        // Another one for each first one; what the resume has fewer of, it passes unharmed.
        kills.push(1 + first * 37 % (points + 8 - first).clamp(8, 120));
        kills
    });
    try_all(case, "killed twice", &unbroken, points, &kills.collect::<Vec<_>>(), began);
}

/// Kills the run at a point of that name in its middle, and the resume at each of its points.
pub fn every_point_of_the_resume(case: &Case, name: &str, stride: usize) {
    let (began, unbroken) = (Instant::now(), unbroken(case));
    let points = unbroken.points();
    let named: Vec<usize> = (1..=points.len()).filter(|at| points[at - 1] == name).collect();
    let first = unbroken.kill(named[named.len() / 2]);
    let resumed = go(case, &first).unwrap_or_else(|error| panic!("{}, killed at {first:?}: {error}", case.name));
    let points = &resumed.passed[first.len()];
    let kills: Vec<_> =
        chosen(points.len(), stride).into_iter().map(|second| [first.as_slice(), &[second]].concat()).collect();
    try_all(case, "killed in the resume", &unbroken, points.len(), &kills, began);
}

/// Lets the run end, takes it back, and kills that at each of its points in turn.
pub fn every_point_of_the_undo(case: &Case, stride: usize) {
    every_point(&Case { way: Way::Undo, ..*case }, stride);
}

/// Kills the undo, and the one that goes on with it.
pub fn undone_twice(case: &Case, stride: usize) {
    twice(&Case { way: Way::Undo, ..*case }, stride);
}

/// Kills the run at each point in turn, and takes it back at once: all must be as it was before.
pub fn undone_at_once(case: &Case, stride: usize) {
    let (began, mut unbroken) = (Instant::now(), unbroken(case));
    let world = World::new(case);
    unbroken.end = End { report: Value::Null, world: same(&world, "", &world.look(case)) };
    drop(world);
    let points = unbroken.points();
    let kills: Vec<_> = chosen(points.len(), stride).into_iter().map(|at| vec![at]).collect();
    let at_once = Case { way: Way::UndoAtOnce, ..*case };
    try_all(&at_once, "killed and taken back", &unbroken, points.len(), &kills, began);
}

fn unbroken(case: &Case) -> Went {
    go(case, &[]).unwrap_or_else(|error| panic!("{}, unbroken: {error}", case.name))
}

impl Went {
    /// The points of all processes: a run that waits for people has several.
    fn points(&self) -> Vec<String> {
        self.passed.concat()
    }

    /// Where each process dies, that one does at the `at`-th of all points (from 1); 0 is nowhere.
    fn kill(&self, mut at: usize) -> Vec<usize> {
        let mut kills = Vec::new();
        for points in &self.passed {
            if at <= points.len() {
                kills.push(at);
                break;
            }
            at -= points.len();
            kills.push(0);
        }
        kills
    }

    /// The last point of each process.
    fn last(&self) -> Vec<&str> {
        self.passed.iter().map(|points| points.last().map_or("none", String::as_str)).collect()
    }
}

/// Of each sample's points, which come first: others each day, so that all have their turn. `LIFEBOAT_KILL_TURN` names a day's.
pub fn turn() -> usize {
    static TURN: std::sync::LazyLock<usize> = std::sync::LazyLock::new(|| {
        let days = std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs() / 86_400);
        let named = std::env::var("LIFEBOAT_KILL_TURN").ok().and_then(|turn| turn.parse().ok());
        named.unwrap_or_else(|| usize::try_from(days).unwrap_or(0))
    });
    *TURN
}

/// The points to try, counted from 1 and spread evenly.
pub fn chosen(points: usize, stride: usize) -> Vec<usize> {
    let stride = if all() { 1 } else { stride };
    (1 + turn() % stride..=points).step_by(stride).collect()
}

fn try_all(case: &Case, how: &str, unbroken: &Went, points: usize, kills: &[Vec<usize>], began: Instant) {
    let next = AtomicUsize::new(0);
    let faults = Mutex::new(Vec::new());
    let threads = std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 8) * case.waits;
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let tried = next.fetch_add(1, Ordering::Relaxed);
                    let Some(one) = kills.get(tried) else { break };
                    let fault = match go(case, one) {
                        Ok(went) => difference(&unbroken.end, &went),
                        Err(fault) => Some(fault),
                    };
                    if let Some(fault) = fault {
                        let fault = format!("--- killed at {one:?}: {fault}");
                        // Told at once: all points of a plan take long.
                        eprintln!("{}, {how}: {fault}", case.name);
                        faults.lock().unwrap().push(fault);
                    }
                    if tried % 20 == 19 {
                        let so_far = faults.lock().unwrap().len();
                        eprintln!("{}, {how}: {} of {} begun, {so_far} faults", case.name, tried + 1, kills.len());
                    }
                }
            });
        }
    });
    let faults = faults.into_inner().unwrap();
    println!(
        "{}, {how} (turn {}): {} of {points} points, {} faults, {:.1} s",
        case.name,
        turn(),
        kills.len(),
        faults.len(),
        began.elapsed().as_secs_f64()
    );
    assert!(faults.is_empty(), "{}: {} faults\n{}", case.name, faults.len(), faults.join("\n"));
}

fn difference(wanted: &End, went: &Went) -> Option<String> {
    let is = &went.end;
    let mut parts = Vec::new();
    for (what, wanted, is) in [("report", &wanted.report, &is.report), ("world", &wanted.world, &is.world)] {
        let (wanted, is) = (flat(wanted), flat(is));
        for key in wanted.keys().chain(is.keys()).collect::<std::collections::BTreeSet<_>>() {
            if wanted.get(key) != is.get(key) {
                let none = Value::Null;
                let (wanted, is) = (wanted.get(key).unwrap_or(&none), is.get(key).unwrap_or(&none));
                parts.push(format!("{what}{key}: wanted {wanted}, is {is}"));
            }
        }
    }
    (!parts.is_empty()).then(|| format!("{}\n    last points: {:?}", parts.join("\n    "), went.last()))
}

/// The leaves, by their pointers.
fn flat(value: &Value) -> BTreeMap<String, Value> {
    fn walk(at: &str, value: &Value, into: &mut BTreeMap<String, Value>) {
        match value {
            Value::Object(map) => map.iter().for_each(|(key, value)| walk(&format!("{at}/{key}"), value, into)),
            value => drop(into.insert(at.to_owned(), value.clone())),
        }
    }
    let mut leaves = BTreeMap::new();
    walk("", value, &mut leaves);
    leaves
}

/// Brings a run to its end in a fresh world; the n-th process of it dies at the n-th of `kills`.
fn go(case: &Case, kills: &[usize]) -> Result<Went, String> {
    let world = World::new(case);
    let run = run_id();
    let mut passed = Vec::new();
    let mut told = String::new();
    let mut locked = 0;
    let begin = ["run", "plan.yaml", "--env", "world.yaml", "--yes", "--jobs", case.jobs, "--run-id"];
    if case.way == Way::Undo {
        let (output, _) = world.lifeboat(&[begin.as_slice(), &[&run]].concat(), None);
        if !matches!(output.status.code(), Some(0 | 1)) {
            return Err(format!("before the undo: {}", said(&output)));
        }
    }
    while passed.len() < TURNS {
        let turn = passed.len();
        let report = report(&world, &run);
        match report.as_ref().map(|report| report["status"].as_str().unwrap_or_default()) {
            Some(status) if case.is_through(status) => {
                return end(case, &world, &run, &report.unwrap_or_default(), passed);
            }
            Some("waiting") => answer(case, &world, &run, &report.unwrap_or_default())?,
            // Nothing of it was kept: it never began, and another one may.
            None if turn > 0 && case.way == Way::UndoAtOnce => {
                return end(case, &world, &run, &Value::Null, passed);
            }
            _ => {}
        }
        let kill = kills.get(turn).copied().filter(|at| *at > 0);
        let go_on = if case.way == Way::Resume { "resume" } else { "undo" };
        let (output, points) = if has_begun(&world, &run) {
            world.lifeboat(&[go_on, &run, "--yes", "--jobs", case.jobs], kill)
        } else {
            world.lifeboat(&[begin.as_slice(), &[&run]].concat(), kill)
        };
        if output.status.code() == Some(5) && locked < 100 {
            // Another test changes the whole server.
            locked += 1;
            std::thread::sleep(std::time::Duration::from_millis(200));
            continue;
        }
        passed.push(points);
        told = said(&output);
        if case.way == Way::UndoAtOnce && told.contains("did nothing that `lifeboat undo` can take back") {
            return end(case, &world, &run, &Value::Null, passed);
        }
        let as_planned = kill.is_some() && output.status.signal() == Some(9);
        if !as_planned && !matches!(output.status.code(), Some(0 | 4)) {
            let last: Vec<_> = passed.iter().map(|points| points.last()).collect();
            return Err(format!("process {}: {told}\n    last points: {last:?}", turn + 1));
        }
    }
    Err(format!("not at its end after {TURNS} turns: {told}"))
}

/// Whether there is a complete record of it.
fn has_begun(world: &World, run: &str) -> bool {
    let journal = world.path(".lifeboat/runs").join(run).join("journal.jsonl");
    std::fs::read(journal).is_ok_and(|journal| journal.contains(&b'\n'))
}

fn report(world: &World, run: &str) -> Option<Value> {
    if !has_begun(world, run) {
        return None;
    }
    let (output, _) = world.lifeboat(&["report", run, "--format", "json"], None);
    assert!(output.status.success(), "report: {}", String::from_utf8_lossy(&output.stderr));
    Some(serde_json::from_slice(&output.stdout).unwrap())
}

/// Says yes to all that waits; that nobody can tell what became of a step must be the plan's own wish.
fn answer(case: &Case, world: &World, run: &str, report: &Value) -> Result<(), String> {
    for step in report["steps"].as_array().unwrap().iter().filter(|step| step["state"] == "waiting") {
        let id = step["id"].as_str().unwrap();
        if step["question"]["kind"] == "interrupted" && !case.may_ask.contains(&id) {
            return Err(format!("a person is asked: {}", step["question"]["message"]));
        }
        let (output, _) = world.lifeboat(&["approve", run, id, "--by", "somebody"], None);
        let said = String::from_utf8_lossy(&output.stderr);
        // One that was killed before it took the answer in leaves it for the next.
        if !output.status.success() && !said.contains("it has been answered already") {
            return Err(format!("approve {id}: {said}"));
        }
    }
    Ok(())
}

/// What is compared, read when all is done.
fn end(case: &Case, world: &World, run: &str, report: &Value, passed: Vec<Vec<String>>) -> Result<Went, String> {
    if has_begun(world, run) {
        let (output, _) = world.lifeboat(&["audit", run], None);
        if !output.status.success() {
            return Err(format!("audit: {}", said(&output)));
        }
    }
    if case.way == Way::UndoAtOnce {
        let end = End { report: Value::Null, world: same(world, run, &world.look(case)) };
        return Ok(Went { end, passed });
    }
    let mut steps = BTreeMap::new();
    for step in report["steps"].as_array().unwrap() {
        let id = step["id"].as_str().unwrap();
        let mut outputs = step["outputs"].clone();
        for varying in case.varying {
            let (of, name) = varying.split_once('.').unwrap();
            let (name, may_be_lost) = name.strip_suffix('?').map_or((name, false), |name| (name, true));
            if of == id && (may_be_lost || outputs.get(name).is_some()) {
                outputs[name] = "something".into();
            }
        }
        steps.insert(id.to_owned(), json!({ "state": step["state"], "outputs": outputs }));
    }
    // What the run says that it left, in whichever order it came to it.
    let things = report["world"]["things"].as_array().unwrap().iter();
    let mut left: Vec<_> = things
        .map(|thing| ["resource", "state", "step", "certain"].map(|what| thing[what].to_string()).join(" "))
        .collect();
    left.sort();
    let no_return = &report["world"]["no_return"];
    let report = json!({ "status": report["status"], "steps": steps, "left": left, "no_return": no_return });
    let end = End { report: same(world, run, &report), world: same(world, run, &world.look(case)) };
    Ok(Went { end, passed })
}

/// In words that are the same in each world.
fn same(world: &World, run: &str, value: &Value) -> Value {
    let times = regex::Regex::new(r"\d{4}-\d\d-\d\dT[\d:.]+Z").unwrap();
    let mut text = value.to_string().replace(&world.prefix, "W");
    if !run.is_empty() {
        text = text.replace(run, "RUN");
    }
    let text = text.replace(&*world.folder.path().to_string_lossy(), "FOLDER");
    serde_json::from_str(&times.replace_all(&text, "TIME")).unwrap()
}
