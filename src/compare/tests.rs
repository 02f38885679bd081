use proptest::prelude::*;

use super::*;
use crate::ids::{Position, Term};

fn v(number: u64) -> Vlsn {
    Vlsn::new(number).unwrap()
}

/// A node of the tests: its entries from VLSN 1 on; `None` is damaged.
#[derive(Clone, Debug)]
struct Store {
    entries: Vec<Option<u8>>,
    /// As many entries one answer covers at most.
    most: usize,
    /// It fails when it is asked for a range that begins here or later.
    fails_at: usize,
}

impl Store {
    fn digest(&self, range: VlsnRange) -> Answer {
        let (first, last) = (range.first().get() as usize, range.last().get() as usize);
        if first >= self.fails_at {
            return Answer::Failed("gone".into());
        }
        let last = last.min(first + self.most - 1);
        let mut bytes = Vec::new();
        for at in first..=last {
            match self.entries[at - 1] {
                Some(entry) => bytes.push(entry),
                None => return Answer::Damaged(v(at as u64)),
            }
        }
        Answer::Digest(RangeDigest {
            range: VlsnRange::new(range.first(), v(last as u64)).unwrap(),
            bytes: bytes.len() as u64,
            digest: twox_hash::XxHash3_128::oneshot(&bytes),
            // As a forged entry would have it that kept its CRC.
            last: Position { vlsn: v(last as u64), term: Term::new(1), crc: 7 },
        })
    }
}

#[derive(Default)]
struct Stores {
    all: Vec<Store>,
    asked: usize,
    compared: u64,
}

impl Nodes for Stores {
    fn count(&self) -> usize {
        self.all.len()
    }

    fn digest(&mut self, whom: &[usize], range: VlsnRange) -> Vec<Answer> {
        self.asked += 1;
        whom.iter().map(|node| self.all[*node].digest(range)).collect()
    }

    fn compared(&mut self, to: Vlsn) {
        assert!(to.get() > self.compared, "it goes on");
        self.compared = to.get();
    }
}

/// The same by looking at every entry: the first about which two differ who were not left out there.
fn naive(stores: &[Store], gaps: &[Gap]) -> Option<(u64, Vec<Vec<usize>>)> {
    (1..=stores[0].entries.len() as u64).find_map(|at| {
        let out = |node| {
            gaps.iter()
                .any(|gap| gap.node == node && gap.range.first().get() <= at && at <= gap.range.last().get())
        };
        let mut sides: Vec<(Option<u8>, Vec<usize>)> = Vec::new();
        for (node, store) in stores.iter().enumerate().filter(|(node, _)| !out(*node)) {
            let entry = store.entries[at as usize - 1];
            match sides.iter_mut().find(|(other, _)| *other == entry) {
                Some((_, side)) => side.push(node),
                None => sides.push((entry, vec![node])),
            }
        }
        sides.sort_by_key(|(_, side)| std::cmp::Reverse(side.len()));
        (sides.len() > 1).then(|| (at, sides.into_iter().map(|(_, side)| side).collect()))
    })
}

fn stores(damage: bool) -> impl Strategy<Value = Vec<Store>> {
    (1usize..60, 2usize..5).prop_flat_map(move |(entries, count)| {
        let base = proptest::collection::vec(any::<u8>(), entries);
        let changes = proptest::collection::vec((0..count, 0..entries, any::<u8>()), 0..4);
        let broken = proptest::collection::vec((0..count, 0..entries), 0..if damage { 6 } else { 1 });
        let most = proptest::collection::vec(1usize..70, count);
        let fails = proptest::collection::vec(if damage { 1usize..120 } else { 119..120 }, count);
        (base, changes, broken, most, fails).prop_map(move |(base, changes, broken, most, fails)| {
            let mut all: Vec<Store> = (0..count)
                .map(|node| Store {
                    entries: base.iter().copied().map(Some).collect(),
                    most: most[node],
                    fails_at: fails[node],
                })
                .collect();
            for (node, at, entry) in changes {
                all[node].entries[at] = Some(entry);
            }
            for (node, at) in broken {
                all[node].entries[at] = None;
            }
            all
        })
    })
}

fn run(all: &[Store]) -> (Findings, Stores) {
    let mut stores = Stores { all: all.to_vec(), ..Stores::default() };
    let range = VlsnRange::new(v(1), v(all[0].entries.len() as u64)).unwrap();
    (compare(range, &mut stores), stores)
}

proptest! {
    #[test]
    fn the_first_difference_is_the_one_that_looking_at_every_entry_finds(all in stores(true)) {
        let (found, _) = run(&all);
        let differs = found.difference.as_ref().map(|one| (one.at.get(), one.sides.clone()));
        prop_assert_eq!(&differs, &naive(&all, &found.gaps));
        let end = differs.map_or(all[0].entries.len() as u64 + 1, |(at, _)| at);
        for gap in &found.gaps {
            let first = gap.range.first().get() as usize;
            match gap.why {
                Why::Damaged => prop_assert_eq!(all[gap.node].entries[first - 1], None),
                Why::Healed => prop_assert!(false, "nothing heals here"),
                Why::Failed(_) => prop_assert!(all[gap.node].fails_at <= first),
            }
        }
        // Nobody is compared over damage, and nobody who fails not at all is left out but for that.
        for (node, store) in all.iter().enumerate() {
            for at in 1..end.min(found.to.map_or(0, Vlsn::get) + 1) {
                let out = found.gaps.iter().any(|gap| {
                    gap.node == node && gap.range.first().get() <= at && at <= gap.range.last().get()
                });
                prop_assert!(out || store.entries[at as usize - 1].is_some(), "node {} at {}", node, at);
            }
        }
    }

    #[test]
    fn without_damage_everything_is_compared(all in stores(false)) {
        let all: Vec<Store> = all.into_iter().map(|store| Store { fails_at: usize::MAX, ..store }).collect();
        let (found, stores) = run(&all);
        prop_assert!(found.gaps.is_empty());
        match &found.difference {
            None => {
                prop_assert_eq!(naive(&all, &[]), None);
                prop_assert_eq!(found.to, Some(v(all[0].entries.len() as u64)));
                prop_assert_eq!(found.bytes, all[0].entries.len() as u64);
                prop_assert_eq!(stores.compared, all[0].entries.len() as u64);
            }
            Some(one) => prop_assert_eq!(naive(&all, &[]), Some((one.at.get(), one.sides.clone()))),
        }
    }
}

#[test]
fn a_difference_in_a_large_log_is_found_in_few_questions() {
    let store = Store { entries: vec![Some(1); 100_000], most: 100_000, fails_at: usize::MAX };
    let mut other = store.clone();
    other.entries[77_776] = Some(2);
    let (found, stores) = run(&[store.clone(), other, store]);
    assert_eq!(found.difference, Some(Difference { at: v(77_777), sides: vec![vec![0, 2], vec![1]] }));
    assert!(stores.asked <= 20, "{} questions", stores.asked);
}

#[test]
fn damage_that_is_healed_before_it_is_asked_about_again_is_told() {
    struct Healing(Stores);
    impl Nodes for Healing {
        fn count(&self) -> usize {
            self.0.count()
        }
        fn digest(&mut self, whom: &[usize], range: VlsnRange) -> Vec<Answer> {
            let answers = self.0.digest(whom, range);
            for (node, answer) in whom.iter().zip(&answers) {
                if let Answer::Damaged(at) = answer {
                    self.0.all[*node].entries[at.get() as usize - 1] = Some(1);
                }
            }
            answers
        }
        fn compared(&mut self, to: Vlsn) {
            self.0.compared(to);
        }
    }
    let store = Store { entries: vec![Some(1); 20], most: 100, fails_at: usize::MAX };
    let mut damaged = store.clone();
    (damaged.entries[6], damaged.entries[12]) = (None, None);
    let mut nodes = Healing(Stores { all: vec![store, damaged], ..Stores::default() });
    let found = compare(VlsnRange::new(v(1), v(20)).unwrap(), &mut nodes);
    assert_eq!((found.to, &found.difference), (Some(v(20)), &None));
    let healed = |at: u64| Gap { node: 1, range: VlsnRange::new(v(at), v(at)).unwrap(), why: Why::Healed };
    assert_eq!(found.gaps, [healed(7), healed(13)]);
}

#[test]
fn nodes_that_say_something_else_each_time_are_given_up() {
    struct Fickle(u128);
    impl Nodes for Fickle {
        fn count(&self) -> usize {
            2
        }
        fn digest(&mut self, whom: &[usize], range: VlsnRange) -> Vec<Answer> {
            let last = Position { vlsn: range.last(), term: Term::new(1), crc: 7 };
            let whole = range.first() < range.last();
            let digest = |node: usize| if whole { node as u128 } else { 0 };
            self.0 += 1;
            whom.iter()
                .map(|node| Answer::Digest(RangeDigest { range, bytes: 1, digest: digest(*node), last }))
                .collect()
        }
        fn compared(&mut self, to: Vlsn) {
            panic!("nothing was compared up to {to}");
        }
    }
    let mut nodes = Fickle(0);
    let found = compare(VlsnRange::new(v(1), v(2)).unwrap(), &mut nodes);
    assert_eq!((found.to, found.difference, found.gaps.len()), (None, None, 2));
    assert!(found.gaps.iter().all(|gap| matches!(gap.why, Why::Failed(_))), "{:?}", found.gaps);
}
