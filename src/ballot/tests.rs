use super::*;
use crate::ids::Vlsn;

fn id(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

fn end(term: u32, vlsn: u64) -> LogEnd {
    LogEnd { term: Term::new(term), vlsn: Vlsn::new(vlsn) }
}

#[test]
fn a_longer_log_of_an_older_term_never_beats_a_shorter_one_of_a_newer_term() {
    assert!(end(2, 1) > end(1, 99));
    assert!(end(1, 99) > end(1, 98));
    assert!(end(1, 1) > LogEnd::EMPTY);
    assert_ne!(id("a"), id("b"));
}
