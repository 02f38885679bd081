//! Requests and answers, whole and damaged.

use super::*;

fn requests() -> Vec<Request<'static>> {
    let vlsn = |number| Vlsn::new(number).unwrap();
    let semi = Policy::SemiSync { acks: 2, level: Level::Applied, timeout: Duration::from_millis(77) };
    let sync = |quorum, level| Policy::Sync { quorum, level };
    let acts = [
        Act::Put { policy: Policy::MAJORITY, key: b"k", value: b"v" },
        Act::Put { policy: Policy::Async, key: b"", value: b"" },
        Act::Put { policy: semi, key: b"k", value: b"v" },
        Act::Put { policy: sync(Quorum::Acks(3), Level::Received), key: b"k", value: b"v" },
        Act::Get { stale: false, key: b"key" },
        Act::Get { stale: true, key: b"" },
        Act::Cas { expected: None, key: b"k", value: b"v" },
        Act::Cas { expected: Some(vlsn(9)), key: b"k", value: b"" },
        Act::Delete { policy: sync(Quorum::All, Level::Checkpointed), key: b"k" },
        Act::Delete { policy: sync(Quorum::Regions(2), Level::Durable), key: b"k" },
        Act::Ask { term: Term::new(4), vlsn: vlsn(5) },
    ];
    acts.into_iter().map(|act| Request { patience: Duration::from_millis(1500), act }).collect()
}

fn answers() -> Vec<Answer> {
    let (version, why) = (Vlsn::new(8).unwrap(), "because".to_owned());
    vec![
        Answer::Written { version, outcome: Outcome::Committed },
        Answer::Written { version, outcome: Outcome::Acked },
        Answer::Written { version, outcome: Outcome::Degraded },
        Answer::Differs { found: None },
        Answer::Differs { found: Some(version) },
        Answer::Found { version, value: b"value".to_vec() },
        Answer::Absent,
        Answer::Committed,
        Answer::RolledBack,
        Answer::Refused { temporary: true, why: why.clone() },
        Answer::Refused { temporary: false, why: String::new() },
        Answer::NotMaster { hint: None },
        Answer::NotMaster { hint: Some("10.0.0.1:7000".parse().unwrap()) },
        Answer::Unknown { term: Term::new(2), vlsn: version, why },
    ]
}

#[test]
fn requests_and_answers_round_trip() {
    for request in requests() {
        assert_eq!(Request::decode(&request.encode()), Ok(request));
    }
    for answer in answers() {
        assert_eq!(Answer::decode(&answer.encode()), Ok(answer));
    }
}

/// Bytes that end anywhere are refused, unless they end in a value, which has no length of its own; so are bytes
/// behind the last field.
#[test]
fn what_is_cut_short_or_too_long_is_refused() {
    for request in requests() {
        let whole = request.encode();
        let value = match request.act {
            Act::Put { value, .. } | Act::Cas { value, .. } => Some(value.len()),
            _ => None,
        };
        for len in 0..whole.len() - value.unwrap_or(0) {
            assert!(Request::decode(&whole[..len]).is_err(), "{request:?} cut to {len}");
        }
        let longer = [&whole[..], &[0]].concat();
        assert_eq!(Request::decode(&longer).is_err(), value.is_none(), "{request:?}");
    }
    for answer in answers() {
        let whole = answer.encode();
        let value = if let Answer::Found { value, .. } = &answer { Some(value.len()) } else { None };
        for len in 0..whole.len() - value.unwrap_or(0) {
            assert!(Answer::decode(&whole[..len]).is_err(), "{answer:?} cut to {len}");
        }
        let longer = [&whole[..], &[0]].concat();
        assert_eq!(Answer::decode(&longer).is_err(), value.is_none(), "{answer:?}");
    }
}

/// A damaged byte gives an error, or something else that is valid: what is read is exactly what the bytes say.
#[test]
fn nothing_is_read_that_the_bytes_do_not_say() {
    for whole in requests().iter().map(Request::encode) {
        for (at, bit) in (0..whole.len()).flat_map(|at| (0..8).map(move |bit| (at, bit))) {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << bit;
            if let Ok(read) = Request::decode(&bytes) {
                assert_eq!(read.encode(), bytes);
            }
        }
    }
    for whole in answers().iter().map(Answer::encode) {
        for (at, bit) in (0..whole.len()).flat_map(|at| (0..8).map(move |bit| (at, bit))) {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << bit;
            if let Ok(read) = Answer::decode(&bytes) {
                assert!(read.encode() == bytes || matches!(read, Answer::NotMaster { .. }));
            }
        }
    }
}

#[test]
fn what_no_version_of_ours_says_is_refused_by_name() {
    let field = |bytes: &[u8]| match Request::decode(bytes) {
        Err(BadBytes::Value { field, .. } | BadBytes::Short(field)) => field,
        other => panic!("{other:?}"),
    };
    assert_eq!(field(&[]), "version");
    assert_eq!(field(&[2, 1]), "version");
    assert_eq!(field(&[1, 9, 0, 0, 0, 0]), "act");
    assert_eq!(field(&[1, 2, 0, 0, 0, 0, 2]), "stale");
    assert_eq!(field(&[1, 4, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0]), "count");
    assert_eq!(field(&[1, 4, 0, 0, 0, 0, 4, 0, 9, 0, 0, 0, 0]), "level");
    assert_eq!(field(&[1, 4, 0, 0, 0, 0, 7, 0, 1, 0, 0, 0, 0]), "policy");
    assert_eq!(field(&[1, 4, 0, 0, 0, 0, 4, 0, 1, 9, 0, 0, 0]), "timeout");
    assert_eq!(Answer::decode(&[1, 77]), Err(BadBytes::Value { field: "answer", found: 77 }));
    assert_eq!(Answer::decode(&[1, 8, 1, 0, 0, 0, b'?']), Err(BadBytes::Text("hint")));
}
