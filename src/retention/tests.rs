use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn v(number: u64) -> Vlsn {
    Vlsn::new(number).unwrap()
}

fn pin(number: u64, owner: &str, from: u64, bytes: u64, since: u64) -> PinInfo {
    let since = Deadline::from_nanos(since);
    PinInfo { number, owner: owner.into(), from: v(from), since, bytes, void: false }
}

/// Segments of 10 entries and 100 bytes; the last is open.
fn tens(count: u64) -> Vec<Extent> {
    (0..count).map(|n| Extent { first: v(n * 10 + 1), bytes: 100, sealed: n + 1 < count }).collect()
}

const LIMITS: Limits =
    Limits { keep_bytes: 0, pin_max_bytes: 10_000, pin_max_age: Duration::from_nanos(1000), disk_floor: 50 };

/// A log of 100 entries, all of them committed and in the engine, on a disk with room.
fn settled<'a>(segments: &'a [Extent], pins: &'a [PinInfo]) -> Inputs<'a> {
    Inputs {
        committed: Some(v(100)),
        checkpointed: Some(v(100)),
        members: None,
        slots: None,
        segments,
        pins,
        now: Deadline::from_nanos(5000),
        free: 1000,
        limits: LIMITS,
    }
}

#[test]
fn each_need_alone_bounds_the_floor() {
    let segments = tens(11);
    let floor = |change: fn(&mut Inputs<'_>), pins: &[PinInfo]| {
        let mut inputs = settled(&segments, pins);
        change(&mut inputs);
        decide(&inputs).floor
    };
    assert_eq!(floor(|_| (), &[]), v(101));
    assert_eq!(floor(|i| i.committed = Some(v(37)), &[]), v(38));
    assert_eq!(floor(|i| i.committed = None, &[]), v(1));
    assert_eq!(floor(|i| i.checkpointed = Some(v(37)), &[]), v(38));
    assert_eq!(floor(|i| i.checkpointed = None, &[]), v(1));
    assert_eq!(floor(|i| i.members = Some(v(37)), &[]), v(37));
    assert_eq!(floor(|i| i.slots = Some(v(37)), &[]), v(37));
    assert_eq!(floor(|_| (), &[pin(1, "slot:a", 37, 640, 4900)]), v(37));
    assert_eq!(floor(|i| i.limits.keep_bytes = 250, &[]), v(81));
    assert_eq!(floor(|i| i.limits.keep_bytes = u64::MAX, &[]), v(1));
    assert_eq!(floor(|i| (i.limits.keep_bytes, i.free) = (250, 0), &[]), v(101), "needs go before habits");
}

#[test]
fn pins_over_their_bounds_are_given_up_and_those_without_bounds_never() {
    let segments = tens(11);
    let all = |from, bytes, since| {
        let owners = ["engine", "snapshot:b", "replica:b", "slot:s", "archive", "subscription:x"];
        let pins = owners.iter().zip(1..).map(|(owner, n)| pin(n, owner, from, bytes, since));
        pins.collect::<Vec<_>>()
    };
    let bounded = |why| vec![(3, why), (4, why), (5, why), (6, why)];
    assert!(is_bounded("needs-snapshot:b"), "nobody could give it one");
    let decided = |pins: &[PinInfo], free| decide(&Inputs { free, ..settled(&segments, pins) });
    assert_eq!(decided(&all(37, 640, 4900), 1000).void, []);
    assert_eq!(decided(&all(37, 10_001, 4900), 1000).void, bounded(Invalid::Bytes));
    assert_eq!(decided(&all(37, 640, 3999), 1000).void, bounded(Invalid::Age));
    assert_eq!(decided(&all(37, 640, 3999), 1000).floor, v(37), "the engine's and the snapshot's hold");
    assert_eq!(decided(&all(37, 640, 4900), 0).void, [], "giving them up would make no room");
    assert_eq!(decided(&all(101, 640, 0), 1000).void, [], "what keeps nothing old costs nothing");
    let mut later = tens(11);
    later.drain(..5);
    let pins = all(37, 640, 4900);
    assert_eq!(decide(&settled(&later, &pins)).void, bounded(Invalid::Gone));
}

#[test]
fn when_the_disk_is_nearly_full_as_few_as_needed_are_given_up_oldest_first() {
    let segments = tens(11);
    let pins = [
        pin(1, "slot:young", 55, 1, 4900),
        pin(2, "slot:old", 15, 1, 4900),
        pin(3, "replica:b", 17, 1, 4900),
        pin(4, "archive", 95, 1, 4900),
    ];
    let given_up = |free, disk_floor| {
        let limits = Limits { disk_floor, ..LIMITS };
        let decision = decide(&Inputs { free, limits, ..settled(&segments, &pins) });
        assert!(decision.void.iter().all(|(_, why)| *why == Invalid::Disk));
        (decision.void.into_iter().map(|(number, _)| number).collect::<Vec<_>>(), decision.floor)
    };
    assert_eq!(given_up(50, 50), (vec![], v(15)));
    assert_eq!(given_up(0, 100), (vec![], v(15)), "the first segment is enough");
    assert_eq!(given_up(0, 101), (vec![2, 3], v(55)), "neither of the two makes room alone");
    assert_eq!(given_up(0, 500), (vec![2, 3], v(55)));
    assert_eq!(given_up(0, 501), (vec![2, 3, 1], v(95)));
    assert_eq!(given_up(0, 5000), (vec![2, 3, 1, 4], v(101)), "all that there is to make");
}

#[test]
fn lists_are_written_anew_where_the_node_itself_needs_nothing_more() {
    let segments = tens(11);
    let restated = |members, slots, pins: &[PinInfo]| {
        let decision = decide(&Inputs {
            members: Vlsn::new(members),
            slots: Vlsn::new(slots),
            ..settled(&segments, pins)
        });
        (decision.restate_members, decision.restate_slots)
    };
    assert_eq!(restated(0, 0, &[]), (false, false));
    assert_eq!(restated(5, 0, &[]), (true, false));
    assert_eq!(restated(0, 95, &[]), (false, true));
    assert_eq!(restated(5, 50, &[]), (true, true));
    assert_eq!(restated(101, 101, &[]), (false, false));
    assert_eq!(restated(99, 100, &[]), (true, true));
    let held = [pin(1, "replica:b", 5, 1, 4900)];
    assert_eq!(restated(5, 101, &held), (true, false), "others may not keep what is kept here");
    let limits = Limits { keep_bytes: 250, ..LIMITS };
    let kept =
        decide(&Inputs { members: Some(v(81)), slots: Some(v(80)), limits, ..settled(&segments, &[]) });
    assert_eq!((kept.restate_members, kept.restate_slots), (false, true));
}

/// What the twin takes for needed: asked entry by entry, not by floors.
fn is_needed(inputs: &Inputs<'_>, void: &BTreeSet<u64>, lists: bool, at: Vlsn) -> bool {
    let newer = |than: Option<Vlsn>| Some(at) > than;
    let listed = |list: Option<Vlsn>| list.is_some_and(|list| at >= list);
    let pinned = |pin: &PinInfo| !void.contains(&pin.number) && at >= pin.from;
    newer(inputs.committed)
        || newer(inputs.checkpointed)
        || (lists && (listed(inputs.members) || listed(inputs.slots)))
        || inputs.pins.iter().any(pinned)
}

/// Bytes of the segments of which nothing is needed, from the oldest on.
fn free_bytes(inputs: &Inputs<'_>, void: &BTreeSet<u64>, lists: bool) -> (usize, u64) {
    let (mut count, mut bytes) = (0, 0);
    for (at, segment) in inputs.segments.iter().enumerate() {
        let Some(next) = inputs.segments.get(at + 1) else { break };
        let entries = segment.first.get()..next.first.get();
        if !segment.sealed || entries.clone().any(|at| is_needed(inputs, void, lists, v(at))) {
            break;
        }
        (count, bytes) = (count + 1, bytes + segment.bytes);
    }
    (count, bytes)
}

prop_compose! {
    fn worlds()(
        first in 1..30u64,
        lens in prop::collection::vec((1..12u64, 1..200u64), 1..8),
        committed in 0..100u64, checkpointed in 0..100u64, members in 0..100u64, slots in 0..100u64,
        pins in prop::collection::vec((0..6usize, 1..110u64, 0..300u64, 0..2000u64), 0..7),
        free in 0..600u64, keep_bytes in 0..400u64, disk_floor in 0..700u64,
    ) -> (Vec<Extent>, Vec<PinInfo>, [u64; 4], u64, Limits) {
        let mut at = first;
        let last = lens.len() - 1;
        let segments = lens.iter().enumerate().map(|(n, (len, bytes))| {
            let extent = Extent { first: v(at), bytes: *bytes, sealed: n < last };
            at += len;
            extent
        }).collect();
        let owners = ["engine", "snapshot:b", "replica:b", "slot:s", "archive", "subscription:x"];
        let pins = pins.iter().zip(1..).map(|((owner, from, bytes, since), number)| {
            pin(number, owners[*owner], *from, *bytes, *since)
        }).collect();
        let limits = Limits { keep_bytes, pin_max_bytes: 200, pin_max_age: Duration::from_nanos(1000), disk_floor };
        (segments, pins, [committed, checkpointed, members, slots], free, limits)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]
    #[test]
    fn a_naive_twin_decides_the_same((segments, pins, at, free, limits) in worlds()) {
        let [committed, checkpointed, members, slots] = at.map(Vlsn::new);
        let inputs = Inputs {
            committed, checkpointed, members, slots, segments: &segments, pins: &pins,
            now: Deadline::from_nanos(2000), free, limits,
        };
        let decision = decide(&inputs);
        let void: BTreeSet<u64> = decision.void.iter().map(|(number, _)| *number).collect();
        let newest = segments.last().unwrap().first;

        // Nothing that is needed goes.
        let below = segments.windows(2).take_while(|pair| pair[0].sealed && pair[1].first <= decision.floor).count();
        let (may_go, _) = free_bytes(&inputs, &void, true);
        prop_assert!(below <= may_go, "{below} of {may_go}");
        // What nobody needs goes, but what is kept anyway.
        let kept: u64 = segments[below..].iter().map(|segment| segment.bytes).sum();
        if free < limits.disk_floor {
            prop_assert_eq!(below, may_go);
        } else if below < may_go {
            let one_less = kept - segments[below].bytes;
            prop_assert!(one_less < limits.keep_bytes, "{} bytes stay for nobody", kept);
        }
        if below > 0 && free >= limits.disk_floor {
            prop_assert!(kept >= limits.keep_bytes);
        }

        // Who is given up is bounded, and there is a reason.
        let mut rightly = BTreeSet::new();
        for pin in pins.iter().filter(|pin| is_bounded(&pin.owner)) {
            let over = pin.bytes > 200 || inputs.now - pin.since > limits.pin_max_age;
            if pin.from < segments[0].first || (over && pin.from < newest) {
                rightly.insert(pin.number);
            }
        }
        prop_assert!(rightly.is_subset(&void));
        let for_room: Vec<&PinInfo> = {
            let given_up = |pin: &&PinInfo| void.contains(&pin.number) && !rightly.contains(&pin.number);
            pins.iter().filter(given_up).collect()
        };
        prop_assert!(for_room.iter().all(|pin| is_bounded(&pin.owner)));
        // For room: every set of them is tried, and no smaller one does as much.
        let others: Vec<u64> =
            pins.iter().filter(|pin| is_bounded(&pin.owner) && !rightly.contains(&pin.number)).map(|pin| pin.number).collect();
        let made = |given: &BTreeSet<u64>| free_bytes(&inputs, given, false).1;
        let enough = |bytes: u64| free + bytes >= limits.disk_floor;
        let sets = (0..1u32 << others.len()).map(|set| {
            let chosen = others.iter().enumerate().filter(|(n, _)| set >> n & 1 == 1).map(|(_, number)| *number);
            (set.count_ones() as usize, rightly.iter().copied().chain(chosen).collect::<BTreeSet<u64>>())
        });
        let sets: Vec<_> = sets.map(|(size, given)| (size, made(&given))).collect();
        let most = sets.iter().map(|(_, bytes)| *bytes).max().unwrap();
        let needed = sets.iter().filter(|(_, bytes)| enough(*bytes) || *bytes == most).map(|(size, _)| *size).min().unwrap();
        prop_assert_eq!(for_room.len(), needed);
        prop_assert!(enough(made(&void)) || made(&void) == most);
    }
}
