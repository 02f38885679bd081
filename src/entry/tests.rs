use super::*;
use proptest::prelude::*;

fn place(vlsn: u64, term: u32, prev: u32) -> Placement {
    Placement { vlsn: Vlsn::new(vlsn), term: Term::new(term), prev, timestamp: 1_700_000_000_000_000 + vlsn }
}

fn run_of(count: u64) -> (Vec<u8>, Vec<usize>) {
    let (mut bytes, mut ends, mut prev) = (Vec::new(), Vec::new(), 0);
    for vlsn in 1..=count {
        let payload = vec![vlsn as u8; vlsn as usize * 3];
        let txn = (vlsn % 2 == 0).then_some(TxnId(vlsn));
        let entry = NewEntry { kind: EntryKind::INSERT, txn, payload: &payload };
        prev = encode(&entry, &place(vlsn, 1 + (vlsn / 3) as u32, prev), &mut bytes);
        ends.push(bytes.len());
    }
    (bytes, ends)
}

#[test]
fn the_layout_is_the_documented_one() {
    let mut bytes = Vec::new();
    let entry = NewEntry { kind: EntryKind::UPDATE, txn: Some(TxnId(0x1122)), payload: b"pay" };
    let crc = encode(&entry, &place(5, 7, 0xaabb_ccdd), &mut bytes);
    assert_eq!(bytes.len(), HEADER_TXN_LEN + 3);
    assert_eq!(bytes[0..4], crc.to_le_bytes());
    assert_eq!(crc, crc32fast::hash(&bytes[4..]));
    assert_eq!(bytes[4..8], 3u32.to_le_bytes());
    assert_eq!(bytes[8..16], 5u64.to_le_bytes());
    assert_eq!(bytes[16..20], 7u32.to_le_bytes());
    assert_eq!(bytes[20..22], [2, 1]);
    assert_eq!(bytes[24..28], 0xaabb_ccddu32.to_le_bytes());
    assert_eq!(bytes[36..44], 0x1122u64.to_le_bytes());
    assert_eq!(&bytes[44..], b"pay");
}

#[test]
fn zeroes_are_the_end_and_no_entry() {
    assert_eq!(Header::parse(&[0; 100]), Err(EntryDamage::Zeroes));
    assert_eq!(Header::parse(&[0; 35]), Err(EntryDamage::Short { needed: 36, present: 35 }));
}

#[test]
fn every_flipped_bit_is_detected_and_every_cut_is_too() {
    let (bytes, _) = run_of(4);
    assert!(verify_run(&bytes, None).is_ok());
    for at in 0..bytes.len() * 8 {
        let mut damaged = bytes.clone();
        damaged[at / 8] ^= 1 << (at % 8);
        assert!(verify_run(&damaged, None).is_err(), "bit {at}");
    }
    let (_, ends) = run_of(4);
    for cut in 0..bytes.len() {
        assert_eq!(verify_run(&bytes[..cut], None).is_ok(), ends.contains(&cut), "cut at {cut}");
    }
}

#[test]
fn missing_swapped_repeated_and_foreign_entries_are_named() {
    let (bytes, ends) = run_of(3);
    let (a, b, c) = (&bytes[..ends[0]], &bytes[ends[0]..ends[1]], &bytes[ends[1]..]);
    let error = |parts: &[&[u8]]| verify_run(&parts.concat(), None).unwrap_err();
    assert!(matches!(error(&[a, c]), RunError::OutOfOrder { .. }));
    assert!(matches!(error(&[b, a]), RunError::OutOfOrder { .. }));
    assert!(matches!(error(&[a, a]), RunError::OutOfOrder { .. }));
    let mut foreign = Vec::new();
    encode(&NewEntry::data(b"x"), &place(2, 1, 99), &mut foreign);
    assert!(matches!(error(&[a, &foreign]), RunError::Foreign { claimed: 99, .. }));
    let mut local = Vec::new();
    encode(&NewEntry::data(b"x"), &Placement { vlsn: None, ..place(2, 1, 0) }, &mut local);
    assert!(matches!(error(&[a, &local]), RunError::Local { .. }));
    assert_eq!(error(&[]), RunError::Empty);
}

#[test]
fn a_falling_term_is_refused() {
    let mut bytes = Vec::new();
    let prev = encode(&NewEntry::data(b"a"), &place(1, 5, 0), &mut bytes);
    encode(&NewEntry::data(b"b"), &place(2, 4, prev), &mut bytes);
    let error = verify_run(&bytes, None).unwrap_err();
    assert_eq!(
        error,
        RunError::TermFalls { at: Vlsn::FIRST.next(), before: Term::new(5), found: Term::new(4) }
    );
}

#[test]
fn entries_iterates_over_several_slices() {
    let (bytes, ends) = run_of(3);
    let slices = [&bytes[..ends[1]], &bytes[ends[1]..]];
    let range = verify_run(&bytes, None).map(|run| run.range).unwrap();
    let seen: Vec<_> = Entries::new(range, &slices).iter().map(|e| number(e.header().vlsn)).collect();
    assert_eq!(seen, [1, 2, 3]);
}

proptest! {
    #[test]
    fn encoding_round_trips(
        vlsn in 0u64.., term in 1u32.., prev: u32, timestamp: u64, kind: u8,
        txn: Option<u64>, payload in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        let entry = NewEntry { kind: EntryKind(kind), txn: txn.map(TxnId), payload: &payload };
        let at = Placement { vlsn: Vlsn::new(vlsn), term: Term::new(term), prev, timestamp };
        let mut bytes = Vec::new();
        let crc = encode(&entry, &at, &mut bytes);
        let (header, len, apart) = encode_apart(&entry, &at);
        prop_assert_eq!(apart, crc);
        prop_assert_eq!(&header[..len], &bytes[..len]);
        let read = EntryRef::verify(&bytes).unwrap();
        prop_assert_eq!(read.payload(), &payload[..]);
        prop_assert_eq!(read.bytes().len(), entry.encoded_len());
        let h = read.header();
        prop_assert_eq!((h.crc, h.prev, h.timestamp), (crc, prev, timestamp));
        prop_assert_eq!((h.vlsn, h.term, h.kind, h.txn), (at.vlsn, at.term, entry.kind, entry.txn));
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(EntryRef::verify(&bytes).is_err() || bytes.len() >= HEADER_LEN);
        prop_assert!(verify_run(&bytes, None).is_err());
    }
}
