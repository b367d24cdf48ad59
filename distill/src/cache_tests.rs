//! Names and bytes against an independent writer, every truncation and every flipped bit of a
//! segment, the index against a map.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::fingerprint::Fingerprint;

fn identity() -> Identity {
    Identity {
        model: Fingerprint(std::array::from_fn(|i| i as u8)),
        tokenizer: Fingerprint([9; 32]),
        classes: 4_096,
        signal: "top-k k=64".to_owned(),
        temperature: Some(5.0),
    }
}

fn range(start: u32, end: u32) -> std::ops::Range<u32> {
    start..end
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

// Python, the packages blake3 and xxhash (the reference code in C):
//   sp = b"limbeck space\0\0\0" + pack("<I", 1) + bytes(range(32)) + bytes([9] * 32)
//        + pack("<III", 4096, 1, bits(5.0)) + b"top-k k=64"; space = blake3(sp).digest()
//   k = b"limbeck key\0\0\0\0\0" + space + pack("<II", 3, 2) + pack("<3I", 1, 2, 151935)
//       + pack("<4I", 0, 1, 1, 2)
const SPACE: &str = "c7b5ad6958cf20d3c1d00c8a2d101fcea03179402dd40222b7678527785401ef";
const TIMELESS: &str = "7f40c6d9cb206e7f0337e91f63ed7875a97ffa73b525b0314b1792a9397e1383";
const KEY: &str = "dc2ec60b29d125e9198344df75c2ef9ac5ff9757e9aee21a0059b7ad1c13caf7";
//   x = lambda b: pack("<Q", xxh3_64_intdigest(b))
//   seg = b"LIMBSEG\0" + pack("<II", 1, 3) + space + b"\0" * 8; seg += x(seg)
//   def rec(key, payload, at):
//       h = b"LREC" + pack("<I", len(payload)) + key + x(payload)
//       return h + x(h + pack("<II", 3, at)) + payload
//   seg += rec(key, b"first", 64); seg += rec(bytes([7] * 32), b"", len(seg))
const SEGMENT: &str = "4c494d42534547000100000003000000c7b5ad6958cf20d3c1d00c8a2d101fcea03179402dd4\
                       0222b7678527785401ef000000000000000077749945fd1894a94c52454305000000dc2ec60b\
                       29d125e9198344df75c2ef9ac5ff9757e9aee21a0059b7ad1c13caf753aab0161c0f0f37ee35\
                       a7978b11b6ad66697273744c5245430000000007070707070707070707070707070707070707\
                       07070707070707070707070707c294d3380580062d3425487e9fdbb434";
//   idx = b"LIMBIDX\0" + pack("<IIQQ", 1, 3, len(seg), 2) + space + key[:8] + pack("<I", 64)
//         + bytes([7] * 8) + pack("<I", 125); idx += x(idx)
const INDEX: &str = "4c494d42494458000100000003000000b5000000000000000200000000000000c7b5ad6958cf20d3\
                     c1d00c8a2d101fcea03179402dd40222b7678527785401efdc2ec60b29d125e94000000007070707\
                     070707077d000000205924d5c7f9b38a";

#[test]
fn names_and_bytes_are_those_of_another_writer() {
    let space = identity().space();
    assert_eq!(hex(&space.0), SPACE);
    assert_eq!(hex(&Identity { temperature: None, ..identity() }.space().0), TIMELESS);
    let key = space.key(&[1, 2, 151_935], &[0..1, 1..2]);
    assert_eq!(key.to_string(), KEY);
    assert_eq!(key.prefix(), 0xdc2e_c60b_29d1_25e9);
    let mut bytes = segment_header(3, &space).to_vec();
    assert!(write_record(&mut bytes, &key, b"first", Place { segment: 3, offset: 64 }));
    assert!(write_record(&mut bytes, &Key([7; 32]), b"", Place { segment: 3, offset: 125 }));
    assert_eq!(hex(&bytes), SEGMENT);
    let found = scan(&bytes, 3, &space).unwrap().records;
    let whole = [(key, 64, 5), (Key([7; 32]), 125, 0)];
    let whole = whole.map(|(key, offset, length)| Found { key, offset, length });
    assert_eq!(found, whole);
    let index = write_index(3, &space, 181, found.iter().map(|r| (r.key.prefix(), r.offset)));
    assert_eq!(hex(&index), INDEX);
    let read = read_index(&index, 3, &space).unwrap();
    assert_eq!(read.segment_bytes, 181);
    let entries: Vec<_> = read.entries().collect();
    assert_eq!(entries, [(key.prefix(), 64), (0x0707_0707_0707_0707, 125)]);
}

#[test]
fn whatever_an_answer_depends_on_is_in_its_name() {
    let one = identity();
    let others = [
        Identity { model: Fingerprint([1; 32]), ..one.clone() },
        Identity { tokenizer: Fingerprint([1; 32]), ..one.clone() },
        Identity { classes: 4_097, ..one.clone() },
        Identity { signal: "top-k k=65".to_owned(), ..one.clone() },
        Identity { temperature: Some(5.000_000_5), ..one.clone() },
        Identity { temperature: None, ..one.clone() },
        Identity { temperature: Some(0.0), ..one.clone() },
    ];
    let mut names: BTreeSet<_> =
        others.iter().map(|o| o.space().key(&[1, 2], &[range(0, 1)])).collect();
    let space = one.space();
    // Counts keep tokens and ranges apart.
    for (tokens, ranges) in [
        (&[1, 2][..], &[range(0, 1)][..]),
        (&[2, 1], &[range(0, 1)]),
        (&[1, 2, 0, 1], &[]),
        (&[1, 2, 0], &[range(0, 1)]),
        (&[1, 2], &[range(0, 2)]),
        (&[1, 2], &[0..1, 1..2]),
    ] {
        names.insert(space.key(tokens, ranges));
    }
    assert_eq!(names.len(), others.len() + 6);
}

/// A segment of records of these payload lengths, and where each begins; the last is the end.
fn segment(lengths: &[usize]) -> (Vec<u8>, Vec<usize>) {
    let mut bytes = segment_header(1, &identity().space()).to_vec();
    let mut starts = Vec::new();
    for (i, &length) in lengths.iter().enumerate() {
        starts.push(bytes.len());
        let place = Place { segment: 1, offset: bytes.len() as u32 };
        // Payloads that look like the beginning of a record.
        let payload: Vec<u8> = b"LREC".iter().copied().cycle().take(length).collect();
        assert!(write_record(&mut bytes, &Key([i as u8; 32]), &payload, place));
    }
    starts.push(bytes.len());
    (bytes, starts)
}

fn read(bytes: &[u8]) -> Result<Scan, SegmentError> {
    scan(bytes, 1, &identity().space())
}

const LENGTHS: [usize; 4] = [40, 0, 7, 133];

#[test]
fn a_segment_cut_anywhere_keeps_every_record_before_the_cut() {
    let (bytes, starts) = segment(&LENGTHS);
    for cut in 0..=bytes.len() {
        if cut < SEGMENT_HEADER_BYTES {
            assert_eq!(read(&bytes[..cut]), Err(SegmentError::Short { found: cut }));
            continue;
        }
        let found = read(&bytes[..cut]).unwrap();
        let whole = starts[1..].iter().filter(|&&end| end <= cut).count();
        let keys: Vec<_> = found.records.iter().map(|record| record.key.0[0]).collect();
        assert_eq!(keys, (0..whole as u8).collect::<Vec<_>>(), "cut at {cut}");
        assert!(found.damaged.is_empty());
        let begun = starts[whole];
        let named = cut >= begun + HEADER_BYTES;
        let torn = (cut > begun).then(|| Damage {
            offset: begun as u32,
            bytes: (cut - begun) as u32,
            key: named.then_some(Key([whole as u8; 32])),
        });
        assert_eq!(found.torn, torn, "cut at {cut}");
    }
}

#[test]
fn a_flipped_bit_anywhere_costs_its_record_and_no_other() {
    let (whole, starts) = segment(&LENGTHS);
    for at in 0..8 * whole.len() {
        let mut bytes = whole.clone();
        bytes[at / 8] ^= 1 << (at % 8);
        let at = at / 8;
        if at < SEGMENT_HEADER_BYTES {
            assert_eq!(read(&bytes), Err(SegmentError::Header), "byte {at}");
            continue;
        }
        let hit = starts.iter().rposition(|&start| start <= at).unwrap();
        let found = read(&bytes).unwrap();
        let keys: Vec<_> = found.records.iter().map(|record| record.key.0[0]).collect();
        let others: Vec<_> = (0..LENGTHS.len() as u8).filter(|&i| i != hit as u8).collect();
        assert_eq!(keys, others, "byte {at}");
        let in_header = at < starts[hit] + HEADER_BYTES;
        let lost = Damage {
            offset: starts[hit] as u32,
            bytes: (starts[hit + 1] - starts[hit]) as u32,
            key: (!in_header).then_some(Key([hit as u8; 32])),
        };
        // Behind a header that cannot be read nothing says where the last record ends.
        match hit + 1 == LENGTHS.len() && in_header {
            true => assert_eq!((&found.damaged[..], found.torn), (&[][..], Some(lost))),
            false => assert_eq!((&found.damaged[..], found.torn), (&[lost][..], None)),
        }
    }
}

#[test]
fn a_record_within_the_payload_of_a_damaged_one_is_not_taken_for_one() {
    let mut inner = Vec::new();
    write_record(&mut inner, &Key([5; 32]), b"x", Place { segment: 1, offset: 64 });
    let mut bytes = segment_header(1, &identity().space()).to_vec();
    write_record(&mut bytes, &Key([1; 32]), &inner, Place { segment: 1, offset: 64 });
    bytes[64 + 10] ^= 1;
    let found = read(&bytes).unwrap();
    assert!(found.records.is_empty() && found.torn.is_some(), "{found:?}");
}

#[test]
fn other_segments_are_refused_with_both_values() {
    let (bytes, _) = segment(&LENGTHS);
    let space = identity().space();
    let other = Space([3; 32]);
    assert_eq!(scan(&bytes, 2, &space), Err(SegmentError::Number { found: 1, wanted: 2 }));
    let wrong = scan(&bytes, 1, &other).unwrap_err();
    assert_eq!(wrong, SegmentError::Space { found: space, wanted: other });
    for digest in [SPACE, &"03".repeat(32)] {
        assert!(wrong.to_string().contains(digest), "{wrong}");
    }
    let mut newer = bytes;
    newer[8] = 2;
    let check = crate::fingerprint::payload_checksum(&[&newer[..56]]);
    newer[56..64].copy_from_slice(&check.to_le_bytes());
    assert_eq!(read(&newer), Err(SegmentError::Version { found: 2 }));
}

#[test]
fn a_damaged_index_file_is_not_believed() {
    let space = identity().space();
    let records = (0..3u32).map(|i| (u64::from(i), 100 * i));
    let bytes = write_index(1, &space, 500, records);
    assert_eq!(read_index(&bytes, 1, &space).unwrap().len(), 3);
    for at in 0..8 * bytes.len() {
        let mut bytes = bytes.clone();
        bytes[at / 8] ^= 1 << (at % 8);
        read_index(&bytes, 1, &space).unwrap_err();
    }
    for cut in 0..bytes.len() {
        read_index(&bytes[..cut], 1, &space).unwrap_err();
    }
    read_index(&bytes, 2, &space).unwrap_err();
    read_index(&bytes, 1, &Space([3; 32])).unwrap_err();
}

#[test]
fn a_payload_longer_than_a_record_holds_is_not_written() {
    let mut out = vec![1];
    let payload = vec![0; MAX_PAYLOAD_BYTES + 1];
    assert!(!write_record(&mut out, &Key([0; 32]), &payload, Place { segment: 0, offset: 64 }));
    assert_eq!(out, [1]);
}

/// Numbers spread as digests are (splitmix64).
fn spread(i: u64) -> u64 {
    let mut z = i.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[test]
fn a_record_takes_less_than_24_bytes_of_an_index_however_it_was_filled() {
    let place = |i: u64| Place { segment: (i >> 20) as u32, offset: i as u32 };
    let count = 1_000_000;
    let mut built = IndexBuilder::with_room(count as usize);
    (0..count).for_each(|i| built.push(spread(i), place(i)));
    let mut index = built.finish();
    assert!(index.bytes() < 24 * index.len(), "{} bytes", index.bytes());
    // As many again while training.
    (count..2 * count).for_each(|i| index.insert(spread(i), place(i)));
    assert_eq!(index.len(), 2 * count as usize);
    assert!(index.bytes() < 24 * index.len(), "{} bytes", index.bytes());
    for i in (0..2 * count).step_by(9_973) {
        assert_eq!(index.places(spread(i)).collect::<Vec<_>>(), [place(i)]);
    }
}

proptest! {
    #[test]
    fn an_index_finds_what_a_map_finds(
        first in prop::collection::vec((0u64..40, 0u32..3, 0u32..9), 0..60),
        later in prop::collection::vec((0u64..40, 0u32..3, 0u32..9), 0..60),
    ) {
        // Few keys, so that many share one; in both halves of the shards.
        let prefix = |key: u64| if key.is_multiple_of(2) { key } else { u64::MAX - key };
        let mut map: BTreeMap<u64, Vec<Place>> = BTreeMap::new();
        let mut built = IndexBuilder::with_room(first.len());
        for &(key, segment, offset) in &first {
            built.push(prefix(key), Place { segment, offset });
            map.entry(prefix(key)).or_default().push(Place { segment, offset });
        }
        let mut index = built.finish();
        for &(key, segment, offset) in &later {
            index.insert(prefix(key), Place { segment, offset });
            map.entry(prefix(key)).or_default().push(Place { segment, offset });
        }
        prop_assert_eq!(index.len(), first.len() + later.len());
        for key in (0..41).map(prefix) {
            let mut wanted = map.get(&key).cloned().unwrap_or_default();
            wanted.sort();
            wanted.reverse();
            prop_assert_eq!(index.places(key).collect::<Vec<_>>(), wanted);
        }
    }

    #[test]
    fn no_bytes_make_a_reader_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..400),
        flips in prop::collection::vec((0usize..400, any::<u8>()), 0..6),
    ) {
        let space = identity().space();
        let _ = scan(&bytes, 1, &space);
        let _ = read_index(&bytes, 1, &space);
        let (mut whole, _) = segment(&LENGTHS);
        for (at, byte) in flips {
            if let Some(place) = whole.get_mut(SEGMENT_HEADER_BYTES + at) {
                *place = byte;
            }
        }
        let found = read(&whole).unwrap();
        // What is found lies one behind the other, and is what was written.
        let mut end = SEGMENT_HEADER_BYTES as u32;
        let mut pieces: Vec<(u32, u32)> = found.damaged.iter().map(|d| (d.offset, d.bytes)).collect();
        pieces.extend(found.records.iter().map(|r| (r.offset, HEADER_BYTES as u32 + r.length)));
        pieces.extend(found.torn.map(|d| (d.offset, d.bytes)));
        pieces.sort();
        for (offset, bytes) in pieces {
            prop_assert_eq!(offset, end);
            end += bytes;
        }
        prop_assert_eq!(end as usize, whole.len());
    }
}
