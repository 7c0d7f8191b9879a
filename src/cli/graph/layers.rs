//! A plan's graph made ready for drawing: only the edges that say something, and rows of boxes.

use std::collections::HashMap;

use super::{Box, Look};
use crate::plan::{Known, Plan, PlannedStep};
use crate::step::effect::Access;

/// What is drawn.
#[derive(Clone, Debug)]
pub struct Drawing {
    /// The steps, each after all that it waits for.
    pub boxes: Vec<Box>,
    /// Who waits for whom directly, those left out that follow from others: `(before, after)`.
    pub edges: Vec<(usize, usize)>,
}

/// A place in a row: a step's box, or an edge that passes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// The box of that number.
    Box(usize),
    /// The edge of that number.
    Edge(usize),
}

impl Drawing {
    pub fn of(plan: &Plan) -> Self {
        let order = order(&plan.steps);
        let place: HashMap<&str, usize> =
            order.iter().enumerate().map(|(place, at)| (plan.steps[*at].id.as_str(), place)).collect();
        let boxes: Vec<Box> = order.iter().map(|at| drawn(&plan.steps[*at])).collect();
        let needs: Vec<Vec<usize>> = order
            .iter()
            .map(|at| plan.steps[*at].needs.iter().filter_map(|id| place.get(id.as_str()).copied()).collect())
            .collect();
        Self { edges: reduce(&needs), boxes }
    }

    /// For each box those that wait for it directly.
    pub fn dependants(&self) -> Vec<Vec<usize>> {
        let mut dependants = vec![Vec::new(); self.boxes.len()];
        for (from, to) in &self.edges {
            dependants[*from].push(*to);
        }
        dependants
    }

    /// Rows of boxes from top to bottom: each box below all that it waits for, `finally`
    /// below all others, and few crossings between the rows.
    pub fn rows(&self) -> Vec<Vec<Slot>> {
        let row = self.row_of_each();
        let mut rows: Vec<Vec<Slot>> = vec![Vec::new(); row.iter().max().map_or(0, |last| last + 1)];
        for (at, row) in row.iter().enumerate() {
            rows[*row].push(Slot::Box(at));
        }
        for (edge, (from, to)) in self.edges.iter().enumerate() {
            let between = row[*from] + 1..row[*to];
            rows[between].iter_mut().for_each(|row| row.push(Slot::Edge(edge)));
        }
        // Each row is sorted by where its neighbours stand, down and up; a few rounds settle it.
        for round in 0..8 {
            let down = round % 2 == 0;
            let order: Vec<usize> =
                if down { (1..rows.len()).collect() } else { (0..rows.len().saturating_sub(1)).rev().collect() };
            for at in order {
                let beside: HashMap<usize, f64> = self.places(&rows[if down { at - 1 } else { at + 1 }]);
                let weight = |slot: &Slot| self.weight(*slot, &beside, down);
                let mut row: Vec<(f64, Slot)> = rows[at]
                    .iter()
                    .enumerate()
                    .map(|(place, slot)| (weight(slot).unwrap_or(place as f64), *slot))
                    .collect();
                row.sort_by(|a, b| a.0.total_cmp(&b.0));
                rows[at] = row.into_iter().map(|(_, slot)| slot).collect();
            }
        }
        rows
    }

    fn row_of_each(&self) -> Vec<usize> {
        let mut row = vec![0; self.boxes.len()];
        let mut by_end: Vec<_> = self.edges.clone();
        by_end.sort_by_key(|(_, to)| *to);
        for (from, to) in &by_end {
            row[*to] = row[*to].max(row[*from] + 1);
        }
        let main = self
            .boxes
            .iter()
            .zip(&row)
            .filter(|(step, _)| !step.finally)
            .map(|(_, row)| row + 1)
            .max()
            .unwrap_or(0);
        for (at, step) in self.boxes.iter().enumerate() {
            if step.finally {
                row[at] = row[at].max(main);
            }
        }
        // Those of `finally` that wait for others of it stay below them.
        for (from, to) in &by_end {
            row[*to] = row[*to].max(row[*from] + 1);
        }
        row
    }

    /// Where the ends of edges are in a row: by box number, and by edge number above all boxes.
    fn places(&self, row: &[Slot]) -> HashMap<usize, f64> {
        row.iter().enumerate().map(|(place, slot)| (self.key(*slot), place as f64)).collect()
    }

    fn key(&self, slot: Slot) -> usize {
        match slot {
            Slot::Box(at) => at,
            Slot::Edge(edge) => self.boxes.len() + edge,
        }
    }

    /// The middle of a slot's neighbours in the row beside; none when it has none there.
    fn weight(&self, slot: Slot, beside: &HashMap<usize, f64>, down: bool) -> Option<f64> {
        let end = |edge: usize| {
            let (from, to) = self.edges[edge];
            let box_ = if down { from } else { to };
            beside.get(&(self.boxes.len() + edge)).or_else(|| beside.get(&box_)).copied()
        };
        let places: Vec<f64> = match slot {
            Slot::Edge(edge) => end(edge).into_iter().collect(),
            Slot::Box(at) => (0..self.edges.len())
                .filter(|edge| if down { self.edges[*edge].1 == at } else { self.edges[*edge].0 == at })
                .filter_map(end)
                .collect(),
        };
        (!places.is_empty()).then(|| places.iter().sum::<f64>() / places.len() as f64)
    }
}

/// The steps in an order in which each comes after all that it waits for, near to the plan's.
fn order(steps: &[PlannedStep]) -> Vec<usize> {
    let index: HashMap<&str, usize> = steps.iter().enumerate().map(|(at, step)| (step.id.as_str(), at)).collect();
    let mut done = vec![false; steps.len()];
    let mut order = Vec::with_capacity(steps.len());
    for at in 0..steps.len() {
        // Depth first without recursion: plans of thousands of steps are chains as deep.
        let mut stack = vec![(at, false)];
        while let Some((at, ready)) = stack.pop() {
            if done[at] {
                continue;
            }
            if ready {
                done[at] = true;
                order.push(at);
                continue;
            }
            stack.push((at, true));
            let needs = steps[at].needs.iter().rev().filter_map(|id| index.get(id.as_str()));
            stack.extend(needs.filter(|need| !done[**need]).map(|need| (*need, false)));
        }
    }
    order
}

/// Edges without those that follow from others.
fn reduce(needs: &[Vec<usize>]) -> Vec<(usize, usize)> {
    let words = needs.len().div_ceil(64);
    let mut before: Vec<Vec<u64>> = Vec::with_capacity(needs.len());
    let mut edges = Vec::new();
    for (at, direct) in needs.iter().enumerate() {
        let mut reached = vec![0_u64; words];
        let mut sorted = direct.clone();
        // The nearest first: what it waits for is then known to be waited for.
        sorted.sort_unstable_by(|a, b| b.cmp(a));
        sorted.dedup();
        for need in sorted.into_iter().filter(|need| *need < at) {
            if reached[need / 64] >> (need % 64) & 1 == 0 {
                edges.push((need, at));
                reached.iter_mut().zip(&before[need]).for_each(|(mine, theirs)| *mine |= theirs);
                reached[need / 64] |= 1 << (need % 64);
            }
        }
        before.push(reached);
    }
    edges.sort_unstable();
    edges
}

fn drawn(step: &PlannedStep) -> Box {
    let rendered = step.render(&Known::default()).ok();
    let look = match &rendered {
        Some(rendered) if rendered.step.question(jiff::Timestamp::UNIX_EPOCH).is_some() => Look::Asks,
        Some(rendered) => match rendered.step.effects().iter().map(|effect| effect.access).max() {
            Some(Access::Destroy) => Look::Destroys,
            Some(Access::Read) | None => Look::Reads,
            Some(_) => Look::Changes,
        },
        None => Look::Changes,
    };
    Box { id: step.id.to_string(), kind: step.info.name.to_owned(), finally: step.finally, look }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A diamond with a long way round, and a `finally`.
    pub fn drawing() -> Drawing {
        let names = ["find", "stop", "restore", "check", "count", "swap", "start", "tell"];
        let boxes = names
            .iter()
            .map(|name| Box {
                id: (*name).to_owned(),
                kind: "exec".to_owned(),
                finally: *name == "tell",
                look: if *name == "swap" { Look::Destroys } else { Look::Changes },
            })
            .collect();
        let needs = vec![vec![], vec![], vec![0], vec![2], vec![0, 2], vec![1, 3, 4, 0], vec![5], vec![]];
        Drawing { boxes, edges: reduce(&needs) }
    }

    #[test]
    fn edges_that_follow_from_others_are_left_out() {
        assert_eq!(drawing().edges, [(0, 2), (1, 5), (2, 3), (2, 4), (3, 5), (4, 5), (5, 6)]);
    }

    #[test]
    fn each_box_stands_below_what_it_waits_for_and_finally_last() {
        let rows = drawing().rows();
        let row = |at: usize| rows.iter().position(|row| row.contains(&Slot::Box(at))).unwrap();
        for (from, to) in drawing().edges {
            assert!(row(from) < row(to));
        }
        assert_eq!(row(7), rows.len() - 1);
        // The edge from `stop` to `swap` passes two rows.
        assert_eq!(rows.iter().filter(|row| row.iter().any(|slot| matches!(slot, Slot::Edge(1)))).count(), 2);
    }
}
