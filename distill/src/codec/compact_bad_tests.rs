//! What is no signal of a compact codec, and what cannot be made one.

use super::*;

#[test]
fn heads_of_another_kind_version_or_shape_are_refused() {
    let refused = |at: usize, byte: u8| {
        let mut bytes = EXAMPLE;
        bytes[at] = byte;
        read(&bytes, Codec::Compact).unwrap_err()
    };
    let found = [0x4c, 0x54, 0x4c];
    assert_eq!(refused(2, 0x4c), CodecError::Magic { codec: Codec::Compact, found });
    assert_eq!(refused(3, 2), CodecError::Version { found: 2, known: 1 });
    assert!(refused(3, 2).to_string().contains("version 2"));
    let other = |at, byte, what: &str, found, wanted| {
        let error = refused(at, byte);
        let CodecError::Head { what: which, found: has, wanted: had } = error else {
            panic!("{error}")
        };
        assert!(which.contains(what) && (has, had) == (found, wanted), "{which}: {has}, {had}");
    };
    other(4, 8, "bits", 8, 16);
    other(5, 0, "ids", 0, 1);
    other(7, 1, "reserved", 256, 0);
    other(11, 1, "rows", (1 << 24) + 1, 1);
    other(12, 5, "entries", 5, 4);
    other(16, 101, "classes", 101, 100);
    // The version is told even where the length is another's, and a head cut off is a length.
    let mut longer = [&EXAMPLE[..], &[0; 7]].concat();
    assert!(matches!(read(&longer, Codec::Compact), Err(CodecError::Length { found: 55, .. })));
    longer[3] = 9;
    assert_eq!(read(&longer, Codec::Compact), Err(CodecError::Version { found: 9, known: 1 }));
    for short in [0, 19, 20, 47] {
        let error = read(&EXAMPLE[..short], Codec::Compact).unwrap_err();
        assert!(matches!(error, CodecError::Length { wanted: 48, .. }), "{error}");
    }
    assert!(matches!(read(&EXAMPLE_8, Codec::Compact), Err(CodecError::Head { found: 8, .. })));
}

#[test]
fn ids_in_disorder_are_refused() {
    let refused = |changes: &[(usize, u8)]| {
        let mut bytes = EXAMPLE;
        changes.iter().for_each(|&(at, byte)| bytes[at] = byte);
        read(&bytes, Codec::Compact).unwrap_err()
    };
    // 40 and 42, which have the upper part 2 in common, with their lower parts exchanged or the same.
    assert_eq!(
        refused(&[(36, 0xa7), (37, 0x38)]),
        CodecError::Order { row: 0, before: 42, found: 40 }
    );
    assert_eq!(refused(&[(37, 0x38)]), CodecError::Order { row: 0, before: 40, found: 40 });
    // A bit too few and a bit too many.
    assert_eq!(refused(&[(38, 0x18)]), CodecError::Places { row: 0, found: 3, wanted: 4 });
    assert_eq!(refused(&[(39, 0x82)]), CodecError::Places { row: 0, found: 5, wanted: 4 });
    // 6 4 is 100; the bit 10 is the first beyond those of 100 classes.
    assert_eq!(refused(&[(37, 0x4a)]), CodecError::Id { row: 0, found: 100, classes: 100 });
    assert_eq!(refused(&[(39, 0x04)]), CodecError::Id { row: 0, found: 115, classes: 100 });
    assert_eq!(refused(&[(39, 0x80)]), CodecError::Id { row: 0, found: 195, classes: 100 });
    // Three lower parts of 5 bits leave a bit.
    let signal = signal_of(&[vec![1.0; 3]], vec![1, 2, 96]);
    let layout = Layout { codec: Codec::Compact, classes: Some(97) };
    let mut bytes = encode(&signal, 0..1, layout).unwrap();
    let ids = Ids::Sent { classes: 97 };
    assert_eq!(decode(&bytes, 1, 3, Codec::Compact, ids).unwrap().ids, [1, 2, 96]);
    bytes[37] |= 0x80;
    assert_eq!(decode(&bytes, 1, 3, Codec::Compact, ids), Err(CodecError::Padding { row: 0 }));
}

#[test]
fn numbers_that_are_none_are_refused() {
    for (at, what) in [(20, "the largest value"), (24, "the step"), (28, "log_z"), (32, "log_rest")]
    {
        for codec in BOTH {
            let mut bytes =
                if codec == Codec::Compact { EXAMPLE.to_vec() } else { EXAMPLE_8.to_vec() };
            bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
            let error = read(&bytes, codec).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
    }
    // A top and a step, each finite, whose difference is not.
    let mut bytes = EXAMPLE;
    bytes[20..24].copy_from_slice(&f32::MIN.to_le_bytes());
    bytes[24..28].copy_from_slice(&f32::MAX.to_le_bytes());
    let error = read(&bytes, Codec::Compact).unwrap_err();
    assert!(matches!(error, CodecError::NotFinite { row: 0, what: "a value", .. }), "{error}");
}

#[test]
fn signals_that_cannot_travel_are_refused() {
    for codec in BOTH {
        let refused = |signal: &TopK, classes| {
            encode(signal, 0..1, Layout { codec, classes: Some(classes) }).unwrap_err()
        };
        let wanted = CodecError::Id { row: 0, found: 99, classes: 99 };
        assert_eq!(refused(&example(), 99), wanted);
        let mut far = example();
        far.ids[1] = u32::MAX;
        let wanted = CodecError::Id { row: 0, found: u32::MAX, classes: 100 };
        assert_eq!(refused(&far, 100), wanted);
        let twice = TopK { ids: vec![42, 7, 42, 40], ..example() };
        assert_eq!(refused(&twice, 100), CodecError::DuplicateId { row: 0, found: 42 });
        assert_eq!(refused(&example(), 3), CodecError::TooManyEntries { k: 4, classes: 3 });
        let classes = (1 << 24) + 1;
        assert_eq!(refused(&example(), classes), CodecError::PackedClasses { classes });
        let error = decode(&EXAMPLE, 1, 4, codec, Ids::Sent { classes }).unwrap_err();
        assert_eq!(error, CodecError::PackedClasses { classes });
        // Down to -(2^24 - 1) from 2^24 - 1 and from 3, times 2^104: the steps, rounded up, end beyond.
        let largest = if codec == Codec::Compact { f32::MAX } else { 3.0 * 2f32.powi(104) };
        let lowest = TopK { scaled: vec![largest, f32::MIN, 0.0, 0.0], ..example() };
        let error = refused(&lowest, 100);
        assert!(matches!(error, CodecError::NotFinite { row: 0, .. }), "{error}");
        // Ids that do not travel may be any.
        let named = Ids::Known(&far.ids);
        let bytes = encode(&far, 0..1, named.layout(codec)).unwrap();
        assert_eq!(decode(&bytes, 1, 4, codec, named).unwrap().ids, far.ids);
    }
}
