//! The walker: a plan's graph and a run's state in, commands out.
//!
//! Pure: no clock, no I/O, no randomness, a fixed order (the plan's). What it counts is
//! derived from the state alone and kept up to date step by step, so that a run of
//! 10,000 steps takes no more than its edges. The embedded dispatcher drives it today;
//! anything else that can start steps and append events may drive it as well.

use std::collections::{BTreeSet, HashMap};

use crate::ids::StepId;
use crate::plan::PlannedStep;
use crate::record::event::{ErrorRecord, Outcome, RunStatus};
use crate::record::state::{Phase, RunState, StepState, Verdict};

/// The walker's version, kept in each run's journal: raise it when the same state gives other commands.
pub const VERSION: u32 = 1;

/// What is to be done next.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Start the step's next attempt.
    Start(usize),
    /// Ask a person.
    Ask(usize),
    /// Enough people answered: let the step end accordingly.
    Conclude(usize),
    /// Its `when` is false.
    Skip(usize, String),
    /// It can't run, because of another step or because the run ends.
    NotRun(usize, String),
    /// It can't even be looked at: its templates fail on the values.
    Fail(usize, ErrorRecord),
    /// Nothing is left that this process can do.
    Stop(RunStatus, Option<String>),
}

/// What a step whose turn has come needs; a pure function of plan and state.
#[derive(Clone, Debug, PartialEq)]
pub enum Turn {
    /// To run.
    Start,
    /// A person's word first.
    Ask,
    /// Nothing: its `when` is false; why.
    Skip(String),
    /// It can't be told: why.
    Fail(ErrorRecord),
}

/// How much of the plan is still wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// All of it.
    #[default]
    Go,
    /// Nothing new: stop when what runs is through.
    Pause,
    /// Nothing but `finally`.
    Cancel,
    /// Nothing at all.
    Abort,
}

/// The graph, as positions in the plan's order.
#[derive(Debug)]
struct Node {
    id: StepId,
    needs: Vec<usize>,
    dependants: Vec<usize>,
    finally: bool,
    goes_on: bool,
    /// It stands still: the run is being taken back.
    still: bool,
}

/// What the walker knows of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Pending,
    Busy,
    Asking,
    Answered,
    Done,
    /// It came to its end in another way; whether by failing itself.
    Bad {
        failed: bool,
    },
}

/// Derives commands from a run's state.
#[derive(Debug)]
pub struct Walker {
    nodes: Vec<Node>,
    classes: Vec<Class>,
    /// Needs that are not met yet.
    unmet: Vec<usize>,
    /// Needs that can't be met any more.
    lost: Vec<usize>,
    pending: [BTreeSet<usize>; 2],
    ready: [BTreeSet<usize>; 2],
    doomed: [BTreeSet<usize>; 2],
    busy: [usize; 2],
    asking: BTreeSet<usize>,
    answered: BTreeSet<usize>,
    /// Failed steps after which the rest does not go on.
    stoppers: BTreeSet<usize>,
    /// Steps that make the run a failed one.
    failures: BTreeSet<usize>,
    /// The run is being taken back.
    undoing: bool,
}

impl Walker {
    /// A walker for this plan, knowing the state.
    pub fn new(steps: &[PlannedStep], state: &RunState) -> Self {
        let index: HashMap<&StepId, usize> = steps.iter().enumerate().map(|(at, step)| (&step.id, at)).collect();
        let mut nodes: Vec<Node> = steps
            .iter()
            .enumerate()
            .map(|(at, step)| Node {
                id: step.id.clone(),
                needs: step.needs.iter().filter_map(|need| index.get(need).copied()).collect(),
                dependants: Vec::new(),
                finally: step.finally,
                goes_on: step.continue_on_failure,
                still: at < state.live_from(),
            })
            .collect();
        for at in 0..nodes.len() {
            for need in nodes[at].needs.clone() {
                nodes[need].dependants.push(at);
            }
        }
        let mut walker = Self {
            classes: vec![Class::Pending; nodes.len()],
            unmet: nodes.iter().map(|node| node.needs.len()).collect(),
            lost: vec![0; nodes.len()],
            pending: Default::default(),
            ready: Default::default(),
            doomed: Default::default(),
            busy: [0; 2],
            asking: BTreeSet::new(),
            answered: BTreeSet::new(),
            stoppers: BTreeSet::new(),
            failures: BTreeSet::new(),
            undoing: state.undo.is_some(),
            nodes,
        };
        for at in 0..walker.nodes.len() {
            if walker.nodes[at].still {
                walker.classes[at] = Class::Done;
                continue;
            }
            walker.pending[walker.part(at)].insert(at);
            walker.sort(at);
        }
        for at in 0..walker.nodes.len() {
            walker.observe(at, &state.steps[at]);
        }
        walker
    }

    /// Takes in what became of a step; call it after each event that concerns one.
    pub fn observe(&mut self, at: usize, state: &StepState) {
        let (was, is) = (self.classes[at], classify(state));
        if was == is || self.nodes[at].still {
            return;
        }
        self.classes[at] = is;
        self.count(at, was, false);
        self.count(at, is, true);
        self.sort(at);
        for dependant in self.nodes[at].dependants.clone() {
            self.met(dependant, at, was, false);
            self.met(dependant, at, is, true);
            self.sort(dependant);
        }
    }

    /// What is to be done now, in the plan's order. `free` is how many more steps may
    /// run; `turn` says what a step needs whose turn has come.
    pub fn next(&self, mode: Mode, free: usize, mut turn: impl FnMut(usize) -> Turn) -> Vec<Command> {
        let mut commands: Vec<Command> = self.answered.iter().map(|at| Command::Conclude(*at)).collect();
        let halted = self.stoppers.first();
        let mut free = free;
        if mode == Mode::Go && halted.is_none() {
            self.begin(0, &mut free, &mut turn, &mut commands);
        }
        if mode != Mode::Pause {
            commands.extend(self.doomed[0].iter().map(|at| Command::NotRun(*at, self.obstacle(*at))));
        }
        if !commands.is_empty() || self.busy[0] > 0 {
            return commands;
        }
        match mode {
            Mode::Pause => return self.paused(),
            Mode::Go if halted.is_none() && !self.asking.is_empty() => return self.waits(),
            _ => {}
        }
        // The steps are settled, or never will be: say so of those that did not run.
        let why = match halted {
            Some(step) => format!("step `{}` failed, and the run does not go on after it", self.nodes[*step].id),
            None => "the run was cancelled".to_owned(),
        };
        commands.extend(self.pending[0].iter().map(|at| Command::NotRun(*at, why.clone())));
        if commands.is_empty() && mode != Mode::Abort {
            self.begin(1, &mut free, &mut turn, &mut commands);
            commands.extend(self.doomed[1].iter().map(|at| Command::NotRun(*at, self.obstacle(*at))));
        }
        if commands.is_empty() && self.busy[1] == 0 {
            commands = self.ended(mode);
        }
        commands
    }

    /// How many steps run, or are between two attempts.
    pub fn busy(&self) -> usize {
        self.busy.iter().sum()
    }

    /// The run's status as templates see it: `running` until all that comes before `finally` is settled.
    pub fn outcome(&self, mode: Mode) -> RunStatus {
        if self.busy[0] > 0 || !self.pending[0].is_empty() {
            return RunStatus::Running;
        }
        match mode {
            Mode::Cancel | Mode::Abort => RunStatus::Cancelled,
            _ if !self.failures.is_empty() => RunStatus::Failed,
            Mode::Pause => RunStatus::Paused,
            Mode::Go if self.undoing => RunStatus::Undone,
            Mode::Go => RunStatus::Succeeded,
        }
    }

    /// The turn of steps that are ready, as far as there is room.
    fn begin(
        &self,
        part: usize,
        free: &mut usize,
        turn: &mut impl FnMut(usize) -> Turn,
        commands: &mut Vec<Command>,
    ) {
        for at in &self.ready[part] {
            // What doesn't run takes no room, but is looked at in order all the same.
            if *free == 0 {
                break;
            }
            commands.push(match turn(*at) {
                Turn::Start => {
                    *free -= 1;
                    Command::Start(*at)
                }
                Turn::Ask => Command::Ask(*at),
                Turn::Skip(why) => Command::Skip(*at, why),
                Turn::Fail(error) => Command::Fail(*at, error),
            });
        }
    }

    fn paused(&self) -> Vec<Command> {
        if self.busy[1] > 0 {
            return Vec::new();
        }
        if self.pending.iter().all(BTreeSet::is_empty) && self.asking.is_empty() {
            // It came too late: there was nothing left to pause.
            return self.ended(Mode::Go);
        }
        vec![Command::Stop(RunStatus::Paused, Some("an operator paused it".to_owned()))]
    }

    fn waits(&self) -> Vec<Command> {
        let steps: Vec<_> = self.asking.iter().map(|at| format!("`{}`", self.nodes[*at].id)).collect();
        vec![Command::Stop(RunStatus::Waiting, Some(format!("a person is asked by {}", steps.join(", "))))]
    }

    fn ended(&self, mode: Mode) -> Vec<Command> {
        if mode < Mode::Cancel && self.asking.iter().any(|at| self.nodes[*at].finally) {
            return self.waits();
        }
        let reason = match self.outcome(mode) {
            RunStatus::Failed => self.failures.first().map(|at| format!("step `{}` failed", self.nodes[*at].id)),
            RunStatus::Cancelled => Some("an operator cancelled it".to_owned()),
            _ => None,
        };
        vec![Command::Stop(self.outcome(mode), reason)]
    }

    /// Which step stands in a step's way, and how.
    fn obstacle(&self, at: usize) -> String {
        let in_the_way = self.nodes[at].needs.iter().find(|need| self.blocks(at, **need));
        in_the_way.map_or_else(String::new, |need| {
            let how = match self.classes[*need] {
                Class::Bad { failed: true } => "failed",
                _ => "did not run",
            };
            format!("it needs `{}`, which {how}", self.nodes[*need].id)
        })
    }

    fn part(&self, at: usize) -> usize {
        usize::from(self.nodes[at].finally)
    }

    /// Steps of `finally` follow each other whatever the outcome; all else wants success.
    fn blocks(&self, at: usize, need: usize) -> bool {
        let regardless = self.nodes[at].finally && self.nodes[need].finally;
        matches!(self.classes[need], Class::Bad { .. }) && !regardless
    }

    fn met(&mut self, at: usize, need: usize, class: Class, gained: bool) {
        let regardless = self.nodes[at].finally && self.nodes[need].finally;
        match class {
            Class::Done => step_by(&mut self.unmet[at], !gained),
            Class::Bad { .. } if regardless => step_by(&mut self.unmet[at], !gained),
            Class::Bad { .. } => step_by(&mut self.lost[at], gained),
            _ => {}
        }
    }

    fn count(&mut self, at: usize, class: Class, gained: bool) {
        let (part, goes_on) = (self.part(at), self.nodes[at].goes_on);
        match class {
            Class::Pending => change(&mut self.pending[part], at, gained),
            Class::Busy => step_by(&mut self.busy[part], gained),
            Class::Asking => change(&mut self.asking, at, gained),
            Class::Answered => change(&mut self.answered, at, gained),
            Class::Bad { failed: true } => {
                if !goes_on && part == 0 {
                    change(&mut self.stoppers, at, gained);
                }
                // Cleaning up that may fail does not change what the run came to.
                if !(goes_on && part == 1) {
                    change(&mut self.failures, at, gained);
                }
            }
            Class::Bad { failed: false } | Class::Done => {}
        }
    }

    fn sort(&mut self, at: usize) {
        let part = self.part(at);
        let pending = self.classes[at] == Class::Pending;
        change(&mut self.ready[part], at, pending && self.unmet[at] == 0);
        change(&mut self.doomed[part], at, pending && self.lost[at] > 0);
    }
}

fn classify(state: &StepState) -> Class {
    match &state.phase {
        Phase::Pending => Class::Pending,
        Phase::Running | Phase::Retrying { .. } => Class::Busy,
        Phase::Waiting(waiting) if waiting.verdict() == Verdict::Open => Class::Asking,
        Phase::Waiting(_) => Class::Answered,
        Phase::Finished(Outcome::Succeeded { .. } | Outcome::Skipped { .. }) => Class::Done,
        Phase::Finished(Outcome::NotRun { .. }) => Class::Bad { failed: false },
        Phase::Finished(Outcome::Failed { .. } | Outcome::Cancelled { .. }) => Class::Bad { failed: true },
    }
}

fn step_by(count: &mut usize, up: bool) {
    if up { *count += 1 } else { *count -= 1 }
}

fn change(set: &mut BTreeSet<usize>, at: usize, member: bool) {
    if member {
        set.insert(at);
    } else {
        set.remove(&at);
    }
}

#[cfg(test)]
#[path = "walk_tests.rs"]
mod tests;
