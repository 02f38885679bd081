//! Trouble at random, for long runs.

use std::time::Duration;

use super::node::SimNode;
use super::rng::Rng;
use super::simulation::Simulation;
use crate::clock::{Clock, Deadline};

/// What trouble comes how often. The weights are relative to each other.
#[derive(Clone, Debug)]
pub struct NemesisPlan {
    /// The mean time between two troubles.
    pub every: Duration,
    /// The longest time that a node stays down or a partition lasts.
    pub lasts: Duration,
    /// How many nodes may be down at once.
    pub max_down: usize,
    /// Weight of a power loss.
    pub crash: u64,
    /// Weight of a killed process.
    pub kill: u64,
    /// Weight of a partition between two nodes.
    pub partition: u64,
    /// Weight of a partition in one direction.
    pub one_way: u64,
    /// Weight of a reset of the connections between two nodes.
    pub reset: u64,
}

impl Default for NemesisPlan {
    fn default() -> NemesisPlan {
        NemesisPlan {
            every: Duration::from_millis(200),
            lasts: Duration::from_millis(500),
            max_down: 1,
            crash: 3,
            kill: 1,
            partition: 2,
            one_way: 2,
            reset: 2,
        }
    }
}

/// What a test has to do because of the nemesis.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Act {
    /// This node was crashed or killed: drop what belongs to it.
    Crashed(String),
    /// Start this node again.
    Restart(String),
}

/// Crashes nodes and cuts connections by a plan, and undoes it in time. Called by the test between runs.
pub struct Nemesis {
    plan: NemesisPlan,
    rng: Rng,
    nodes: Vec<SimNode>,
    next: Deadline,
    /// Nodes that are down, and until when.
    down: Vec<(Deadline, String)>,
    /// Directions that are blocked, and until when.
    blocked: Vec<(Deadline, String, String)>,
}

impl Nemesis {
    /// Trouble for these nodes.
    pub fn new(sim: &Simulation, nodes: Vec<SimNode>, plan: NemesisPlan) -> Nemesis {
        let mut nemesis = Nemesis {
            plan,
            rng: sim.rng(),
            nodes,
            next: sim.clock().now(),
            down: Vec::new(),
            blocked: Vec::new(),
        };
        nemesis.next = nemesis.next + nemesis.part_of(nemesis.plan.every * 2);
        nemesis
    }

    fn part_of(&mut self, time: Duration) -> Duration {
        time.mul_f64(self.rng.below(1 << 20) as f64 / (1u64 << 20) as f64)
    }

    /// Does what is due by now.
    pub fn act(&mut self, sim: &Simulation) -> Vec<Act> {
        let now = sim.clock().now();
        let mut acts = self.undo(sim, now);
        if now < self.next || self.nodes.is_empty() {
            return acts;
        }
        self.next = now + self.part_of(self.plan.every * 2);
        let until = now + self.part_of(self.plan.lasts);
        let one = self.rng.index(self.nodes.len());
        let other = (one + 1 + self.rng.index(self.nodes.len().max(2) - 1)) % self.nodes.len();
        let (node, other) = (self.nodes[one].clone(), self.nodes[other].name().to_owned());
        let name = node.name().to_owned();
        let plan = &self.plan;
        let weights = [plan.crash, plan.kill, plan.partition, plan.one_way, plan.reset];
        let mut draw = self.rng.below(weights.iter().sum());
        let kind = weights.iter().position(|&weight| {
            let hit = draw < weight;
            draw = draw.saturating_sub(weight);
            hit
        });
        let is_down = self.down.iter().any(|(_, down)| *down == name);
        match kind {
            Some(kind @ (0 | 1)) if !is_down && self.down.len() < self.plan.max_down => {
                if kind == 0 {
                    node.crash()
                } else {
                    node.kill()
                }
                self.down.push((until, name.clone()));
                acts.push(Act::Crashed(name));
            }
            Some(kind @ (2 | 3)) if name != other => {
                sim.net().block(&name, &other);
                self.blocked.push((until, name.clone(), other.clone()));
                if kind == 2 {
                    sim.net().block(&other, &name);
                    self.blocked.push((until, other, name));
                }
            }
            Some(4) => sim.net().reset(&name, &other),
            _ => {}
        }
        acts
    }

    /// Ends all trouble: for the part of a test in which everything must come right.
    pub fn calm(&mut self, sim: &Simulation) -> Vec<Act> {
        self.undo(sim, Deadline::NEVER)
    }

    fn undo(&mut self, sim: &Simulation, now: Deadline) -> Vec<Act> {
        let mut over = Vec::new();
        self.blocked.retain(|(until, from, to)| {
            let ends = *until <= now;
            if ends {
                over.push((from.clone(), to.clone()));
            }
            !ends
        });
        for (from, to) in over {
            // A later trouble may block the same direction.
            if !self.blocked.iter().any(|(_, a, b)| (a, b) == (&from, &to)) {
                sim.net().unblock(&from, &to);
            }
        }
        let mut acts = Vec::new();
        self.down.retain(|(until, name)| {
            let ends = *until <= now;
            if ends {
                acts.push(Act::Restart(name.clone()));
            }
            !ends
        });
        acts
    }
}
