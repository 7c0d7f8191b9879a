//! The order of steps: topological order, cycles, and "does one wait for the other".
//!
//! The one place that knows petgraph. Steps are numbers here. Memory stays linear in
//! steps and dependencies: reachability is answered on demand, never tabled.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use petgraph::Direction;
use petgraph::algo::kosaraju_scc;
use petgraph::graph::{DiGraph, NodeIndex};

/// A graph of steps; an edge leads from a step to one that waits for it.
#[derive(Debug)]
pub struct Graph {
    edges: DiGraph<(), (), u32>,
    /// Steps in an order in which each comes after all that it waits for; text order where that is free.
    topological: Vec<usize>,
    /// Each step's place in `topological`.
    position: Vec<usize>,
    /// Each step's first and last number in a walk over a spanning forest: one within
    /// another's numbers is below it in the forest, so it waits for it.
    forest: Vec<(u32, u32)>,
    /// All that waits for steps that were asked about often.
    after: RefCell<HashMap<usize, After>>,
}

/// What is remembered of a step that others are compared with.
#[derive(Debug)]
enum After {
    /// So many questions were answered by searching.
    Asked(u32),
    /// One bit a step: whether it waits for this one.
    Known(Vec<u64>),
}

/// So many searches from one step are made before all that waits for it is marked.
const SEARCHES: u32 = 8;
/// So many steps' marks are kept: with 50,000 steps, 2 MiB.
const KEPT: usize = 256;

impl Graph {
    /// A graph from each step's direct needs.
    ///
    /// # Errors
    /// Every cycle, as the steps along it; the first waits for the second, and so on.
    pub fn new(needs: &[Vec<usize>]) -> Result<Self, Vec<Vec<usize>>> {
        let edges = needs.iter().map(Vec::len).sum();
        let mut graph = DiGraph::with_capacity(needs.len(), edges);
        for _ in needs {
            graph.add_node(());
        }
        for (step, needs) in needs.iter().enumerate() {
            for need in needs {
                graph.add_edge(node(*need), node(step), ());
            }
        }
        let topological = order(&graph);
        if topological.len() < needs.len() {
            return Err(cycles(&graph));
        }
        let mut position = vec![0; needs.len()];
        for (place, step) in topological.iter().enumerate() {
            position[*step] = place;
        }
        let forest = forest(&graph, &topological);
        Ok(Self { edges: graph, topological, position, forest, after: RefCell::default() })
    }

    /// Steps in an order in which each comes after all that it waits for; text order where that is free.
    pub fn topological(&self) -> &[usize] {
        &self.topological
    }

    /// Whether `second` waits, directly or not, for `first`.
    pub fn before(&self, first: usize, second: usize) -> bool {
        if first == second || self.position[first] >= self.position[second] {
            return false;
        }
        if self.holds(first, second) {
            return true;
        }
        let mut after = self.after.borrow_mut();
        let room = after.len() < KEPT;
        match after.entry(first).or_insert(After::Asked(0)) {
            After::Known(marks) => return marks[second / 64] & (1 << (second % 64)) != 0,
            After::Asked(times) if *times < SEARCHES || !room => *times += 1,
            asked @ After::Asked(_) => {
                let marks = self.mark_after(first);
                let found = marks[second / 64] & (1 << (second % 64)) != 0;
                *asked = After::Known(marks);
                return found;
            }
        }
        drop(after);
        self.search(first, second)
    }

    /// The steps that `step` waits for directly.
    pub fn needs(&self, step: usize) -> impl Iterator<Item = usize> + '_ {
        self.edges.neighbors_directed(node(step), Direction::Incoming).map(NodeIndex::index)
    }

    fn holds(&self, upper: usize, lower: usize) -> bool {
        let ((first, last), (inner, _)) = (self.forest[upper], self.forest[lower]);
        first <= inner && inner <= last
    }

    /// Walks back from `second`, never further up than `first` stands.
    fn search(&self, first: usize, second: usize) -> bool {
        let mut seen = std::collections::HashSet::from([second]);
        let mut open = vec![second];
        while let Some(step) = open.pop() {
            for need in self.needs(step) {
                if need == first || self.holds(first, need) {
                    return true;
                }
                if self.position[need] > self.position[first] && seen.insert(need) {
                    open.push(need);
                }
            }
        }
        false
    }

    fn mark_after(&self, first: usize) -> Vec<u64> {
        let mut marks = vec![0; self.topological.len().div_ceil(64)];
        let mut open = vec![first];
        while let Some(step) = open.pop() {
            for next in self.edges.neighbors(node(step)).map(NodeIndex::index) {
                let (word, bit) = (next / 64, 1 << (next % 64));
                if marks[word] & bit == 0 {
                    marks[word] |= bit;
                    open.push(next);
                }
            }
        }
        marks
    }
}

fn node(step: usize) -> NodeIndex<u32> {
    NodeIndex::new(step)
}

/// Kahn's order, the step that stands first in the text first. Shorter than the graph when there is a cycle.
fn order(graph: &DiGraph<(), (), u32>) -> Vec<usize> {
    let mut waits: Vec<usize> =
        graph.node_indices().map(|step| graph.neighbors_directed(step, Direction::Incoming).count()).collect();
    let mut ready: BinaryHeap<Reverse<usize>> =
        waits.iter().enumerate().filter(|(_, waits)| **waits == 0).map(|(step, _)| Reverse(step)).collect();
    let mut topological = Vec::with_capacity(waits.len());
    while let Some(Reverse(step)) = ready.pop() {
        topological.push(step);
        for next in graph.neighbors(node(step)).map(NodeIndex::index) {
            waits[next] -= 1;
            if waits[next] == 0 {
                ready.push(Reverse(next));
            }
        }
    }
    topological
}

/// Numbers a spanning forest in depth-first order.
fn forest(graph: &DiGraph<(), (), u32>, topological: &[usize]) -> Vec<(u32, u32)> {
    let mut numbers: Vec<Option<(u32, u32)>> = vec![None; topological.len()];
    let mut next = 0;
    for root in topological {
        if numbers[*root].is_some() {
            continue;
        }
        numbers[*root] = Some((next, next));
        next += 1;
        let mut open = vec![(*root, graph.neighbors(node(*root)))];
        while let Some((step, rest)) = open.last_mut() {
            let step = *step;
            match rest.next().map(NodeIndex::index) {
                Some(below) if numbers[below].is_none() => {
                    numbers[below] = Some((next, next));
                    next += 1;
                    open.push((below, graph.neighbors(node(below))));
                }
                Some(_) => {}
                None => {
                    if let Some((_, last)) = &mut numbers[step] {
                        *last = next - 1;
                    }
                    open.pop();
                }
            }
        }
    }
    numbers.into_iter().map(Option::unwrap_or_default).collect()
}

/// One cycle of each knot of steps that wait for each other.
fn cycles(graph: &DiGraph<(), (), u32>) -> Vec<Vec<usize>> {
    let mut found: Vec<Vec<usize>> = kosaraju_scc(graph)
        .into_iter()
        .filter(|knot| knot.len() > 1 || graph.contains_edge(knot[0], knot[0]))
        .map(|knot| cycle(graph, &knot))
        .collect();
    found.sort();
    found
}

/// The shortest way from the knot's first step back to itself.
fn cycle(graph: &DiGraph<(), (), u32>, knot: &[NodeIndex<u32>]) -> Vec<usize> {
    let inside: std::collections::HashSet<NodeIndex<u32>> = knot.iter().copied().collect();
    let start = knot.iter().copied().min().unwrap_or_default();
    let mut came_from: HashMap<NodeIndex<u32>, NodeIndex<u32>> = HashMap::new();
    let mut open = std::collections::VecDeque::from([start]);
    while let Some(step) = open.pop_front() {
        for need in graph.neighbors_directed(step, Direction::Incoming).filter(|need| inside.contains(need)) {
            if need == start {
                let mut path = vec![step.index()];
                let mut back = step;
                while let Some(previous) = came_from.get(&back) {
                    path.push(previous.index());
                    back = *previous;
                }
                path.reverse();
                return path;
            }
            if need != start && !came_from.contains_key(&need) {
                came_from.insert(need, step);
                open.push_back(need);
            }
        }
    }
    vec![start.index()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn text_order_is_kept_where_it_can_be() {
        let graph = Graph::new(&[vec![], vec![3], vec![0], vec![]]).unwrap();
        assert_eq!(graph.topological(), [0, 2, 3, 1]);
    }

    #[test]
    fn cycles_are_paths() {
        let cycles = Graph::new(&[vec![2], vec![0], vec![1], vec![3], vec![0]]).unwrap_err();
        assert_eq!(cycles, [vec![0, 2, 1], vec![3]]);
    }

    #[test]
    fn long_chains_are_walked_without_recursion_and_quickly() {
        let needs: Vec<Vec<usize>> =
            (0..100_000).map(|step| if step == 0 { vec![] } else { vec![step - 1] }).collect();
        let graph = Graph::new(&needs).unwrap();
        assert!((1..100_000).all(|step| graph.before(0, step) && !graph.before(step, 0)));
    }

    proptest! {
        #[test]
        fn before_is_reachability(edges in proptest::collection::vec((0usize..30, 0usize..30), 0..80)) {
            let mut needs = vec![vec![]; 30];
            for (a, b) in edges {
                // Downwards only: no cycle.
                if a > b { needs[a].push(b); }
            }
            let graph = Graph::new(&needs).unwrap();
            let mut reach = vec![[false; 30]; 30];
            for step in 0..30 {
                for need in &needs[step] {
                    reach[step][*need] = true;
                    let above = reach[*need];
                    for (mine, theirs) in reach[step].iter_mut().zip(above) { *mine |= theirs; }
                }
            }
            for _ in 0..2 {
                for (a, above) in reach.iter().enumerate() {
                    for (b, reached) in above.iter().enumerate() {
                        prop_assert_eq!(graph.before(b, a), *reached, "{} before {}", b, a);
                    }
                }
            }
        }
    }
}
