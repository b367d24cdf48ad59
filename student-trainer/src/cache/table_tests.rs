//! Caches as Parquet files and back, and files of other programs.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::builder::{FixedSizeListBuilder, Float64Builder, Int64Builder, ListBuilder};
use arrow_array::{ArrayRef, RecordBatch};
use distill::signal::TopK;

use super::*;
use crate::cache::payload::About;
use crate::cache::store::Store;
use crate::feed::Scored;
use crate::testing::{logits, rows, tiny_source};

const CLASSES: usize = 24;
const K: usize = 5;

fn manifest(temperature: f32) -> Manifest {
    Manifest {
        revision: "main".to_owned(),
        signal: top_k(K, distill::codec::Codec::Packed),
        temperature: Some(temperature),
        parameters: 3,
        ..crate::testing::manifest()
    }
}

fn answer(row: &distill::batch::Sequence, temperature: f64) -> Scored {
    let (mut signal, mut next_logprob) = (TopK::new(K), Vec::new());
    for position in row.scored() {
        let y = logits(row.ids[position], CLASSES);
        signal.push_exact(&y, temperature);
        let log_z = distill::signal::log_sum_exp(y.iter().copied());
        next_logprob.push((y[row.ids[position + 1] as usize] - log_z) as f32);
    }
    Scored { signal: signal.into(), next_logprob, wire_bytes: 0 }
}

fn fill(place: &str, temperature: f32) {
    let manifest = manifest(temperature);
    let mut filled = Filled::open(place, &manifest).unwrap();
    for row in rows(70, 3).iter() {
        let (tokens, ranges) = (row.ids.clone(), row.scored_ranges());
        let said = payload::Said { tokens, ranges, scored: answer(row, temperature.into()) };
        filled.put(&said).unwrap().unwrap();
    }
    filled.writer.finish().unwrap();
}

struct Places {
    _root: tempfile::TempDir,
    first: String,
    second: String,
    table: PathBuf,
}

impl Places {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name).to_str().unwrap().to_owned();
        let (first, second) = (path("first"), path("second"));
        let table = root.path().join("answers.parquet");
        Self { _root: root, first, second, table }
    }

    fn import(&self) -> CacheImportConfig {
        CacheImportConfig {
            cache: self.second.clone(),
            parquet: self.table.clone(),
            student: None,
            teacher_model: None,
            temperature: 1.0,
        }
    }
}

#[test]
fn what_is_exported_and_imported_teaches_the_same() {
    let places = Places::new();
    fill(&places.first, 2.0);
    let config = CacheExportConfig { cache: places.first.clone(), parquet: places.table.clone() };
    let Exported { rows: count, damaged } = export(&config).unwrap();
    assert!(damaged.is_empty(), "{damaged:?}");
    assert_eq!(count, Store::open(Path::new(&places.first)).unwrap().unwrap().len());
    assert!(count > BATCH, "{count}: several batches");
    assert_eq!(import(&places.import()).unwrap(), count);
    let mut store = Store::open(Path::new(&places.second)).unwrap().unwrap();
    assert_eq!(store.manifest, manifest(2.0));
    for row in rows(70, 3).iter() {
        let key = store.space.key(&row.ids, &row.scored_ranges());
        let crate::cache::store::Found::Payload(bytes) = store.read(&key) else {
            panic!("a row is missing")
        };
        let found = payload::read(&bytes, row, About { classes: CLASSES, states: None }).unwrap();
        let wanted = answer(row, 2.0);
        assert_eq!(found.signal.top_k().unwrap().ids, wanted.signal.top_k().unwrap().ids);
        assert_eq!(found.signal.top_k().unwrap().log_rest, wanted.signal.top_k().unwrap().log_rest);
        assert_eq!(found.next_logprob, wanted.next_logprob);
        for position in 0..found.signal.rows() {
            let (p, rest) = found.signal.top_k().unwrap().probabilities(position);
            let (wanted_p, wanted_rest) = wanted.signal.top_k().unwrap().probabilities(position);
            let pairs = p.iter().zip(&wanted_p).chain([(&rest, &wanted_rest)]);
            // Log-probabilities are rounded to float32 once more: half a unit of numbers up to 8.
            pairs.for_each(|(a, b)| assert!((a - b).abs() < 5e-7 * b, "{a} {b}"));
        }
    }
    // The same once more adds nothing.
    import(&places.import()).unwrap();
    assert_eq!(Store::open(Path::new(&places.second)).unwrap().unwrap().len(), count);
}

/// A file as another program may write it: wide ids, float64, entries in any order, no other columns.
fn foreign_file(path: &Path, spoil: impl Fn(&mut Vec<i64>, &mut Vec<f64>)) {
    let (mut tokens, mut ids, mut logprobs) = (
        ListBuilder::new(Int64Builder::new()),
        ListBuilder::new(ListBuilder::new(Int64Builder::new())),
        ListBuilder::new(FixedSizeListBuilder::new(Float64Builder::new(), K as i32)),
    );
    let row: Vec<u32> = vec![3, 1, 4, 1, 5];
    row.iter().for_each(|&id| tokens.values().append_value(id.into()));
    tokens.append(true);
    // One list more than positions have a next token.
    for &token in &row {
        let y = logits(token, CLASSES);
        let log_z = distill::signal::log_sum_exp(y.iter().copied());
        let mut order: Vec<usize> = (0..CLASSES).collect();
        order.sort_by(|&a, &b| y[b].total_cmp(&y[a]).then(a.cmp(&b)));
        order.truncate(K);
        order.reverse();
        let mut named: Vec<i64> = order.iter().map(|&id| id as i64).collect();
        let mut values: Vec<f64> = order.iter().map(|&id| y[id] - log_z).collect();
        spoil(&mut named, &mut values);
        named.iter().for_each(|&id| ids.values().values().append_value(id));
        ids.values().append(true);
        values.iter().for_each(|&value| logprobs.values().values().append_value(value));
        logprobs.values().append(true);
    }
    ids.append(true);
    logprobs.append(true);
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("input_ids", Arc::new(tokens.finish())),
        ("teacher_topk_ids", Arc::new(ids.finish())),
        ("teacher_topk_logprobs", Arc::new(logprobs.finish())),
        ("text", Arc::new(arrow_array::StringArray::from(vec!["whatever"]))),
    ];
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let mut writer =
        ArrowWriter::try_new(File::create(path).unwrap(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

#[test]
fn another_programs_file_is_read_once_it_is_told_whose_answers_they_are() {
    let places = Places::new();
    foreign_file(&places.table, |_, _| {});
    let refused = import(&places.import()).unwrap_err().to_string();
    for piece in ["--student", "--teacher-model", "--temperature"] {
        assert!(refused.contains(piece), "{refused}");
    }
    let model = tempfile::tempdir().unwrap();
    tiny_source(model.path());
    let student = Some(model.path().to_str().unwrap().to_owned());
    let config =
        CacheImportConfig { student, teacher_model: Some("big".to_owned()), ..places.import() };
    assert_eq!(import(&config).unwrap(), 1);
    let mut store = Store::open(Path::new(&places.second)).unwrap().unwrap();
    assert_eq!((store.manifest.k(), store.manifest.model.as_str()), (Some(K), "big"));
    let row = distill::batch::Sequence::all_scored(vec![3, 1, 4, 1, 5]).unwrap();
    let key = store.space.key(&row.ids, &row.scored_ranges());
    let crate::cache::store::Found::Payload(bytes) = store.read(&key) else { panic!("not there") };
    let found = payload::read(&bytes, &row, About { classes: CLASSES, states: None }).unwrap();
    let wanted = answer(&row, 1.0);
    assert_eq!(found.signal.top_k().unwrap().ids, wanted.signal.top_k().unwrap().ids);
    for position in 0..4 {
        let (p, rest) = found.signal.top_k().unwrap().probabilities(position);
        let (wanted_p, wanted_rest) = wanted.signal.top_k().unwrap().probabilities(position);
        let pairs = p.iter().zip(&wanted_p).chain([(&rest, &wanted_rest)]);
        pairs.for_each(|(a, b)| assert!((a - b).abs() < 1e-6, "{a} {b}"));
        let next = row.ids[position + 1];
        let among = found.signal.top_k().unwrap().ids[position * K..][..K].contains(&next);
        match among {
            true => {
                let off = found.next_logprob[position] - wanted.next_logprob[position];
                assert!(off.abs() < 1e-6, "{off}");
            }
            false => {
                assert!(found.next_logprob[position].is_nan(), "what nobody said is not known")
            }
        }
    }
}

#[test]
fn a_file_that_makes_no_sense_is_refused_with_its_row() {
    let model = tempfile::tempdir().unwrap();
    tiny_source(model.path());
    let student = model.path().to_str().unwrap().to_owned();
    type Spoil = fn(&mut Vec<i64>, &mut Vec<f64>);
    let spoilt: [(Spoil, &str); 5] = [
        (|ids, _| ids[0] = -1, "-1"),
        (|ids, _| ids[0] = 24, "24"),
        (|ids, _| ids[1] = ids[0], "twice"),
        (|_, values| values[2] = f64::NAN, "NaN"),
        (|_, values| values[2] = 0.5, "0.5"),
    ];
    for (spoil, piece) in spoilt {
        let places = Places::new();
        foreign_file(&places.table, spoil);
        let (student, teacher_model) = (Some(student.clone()), Some("big".to_owned()));
        let config = CacheImportConfig { student, teacher_model, ..places.import() };
        let refused = import(&config).unwrap_err().to_string();
        for piece in [piece, "row 1", "answers.parquet"] {
            assert!(refused.contains(piece), "no {piece:?} in {refused}");
        }
    }
    let places = Places::new();
    for bytes in [&b""[..], b"PAR1", b"{\"input_ids\": [1]}"] {
        std::fs::write(&places.table, bytes).unwrap();
        let refused = import(&places.import()).unwrap_err().to_string();
        assert!(refused.contains("answers.parquet"), "{refused}");
    }
    // Answers of another kind than the cache's.
    fill(&places.first, 2.0);
    fill(&places.second, 3.0);
    let config = CacheExportConfig { cache: places.first.clone(), parquet: places.table.clone() };
    export(&config).unwrap();
    let refused = import(&places.import()).unwrap_err().to_string();
    assert!(refused.contains("temperature 3,") && refused.contains("for 2:"), "{refused}");
}

/// Puts what is not there into segments of a few records; says how many rows that were.
fn refill(dir: &Path) -> usize {
    let (mut writer, mut store) = Writer::open(dir, &manifest(2.0), 3000, None).unwrap();
    let mut put = 0;
    for row in rows(70, 3).iter() {
        let key = store.space.key(&row.ids, &row.scored_ranges());
        if !store.has(&key) {
            let payload = payload::write(row, &answer(row, 2.0), CLASSES).unwrap();
            let place = writer.append(&key, &payload).unwrap();
            store.added(&key, place);
            put += 1;
        }
    }
    writer.finish().unwrap();
    put
}

/// A way to damage a segment, given where its records are.
type Harm = fn(&mut Vec<u8>, &[usize]);

/// What is damaged is named and left out of a table; once it was written anew it is told of no more, however
/// it was damaged and whether its segment was sealed.
#[test]
fn what_is_damaged_is_left_out_and_named_until_it_is_written_anew() {
    let harms: [(&str, bool, Harm, usize); 5] = [
        ("a header", true, |bytes, at| bytes[at[0] + 9] ^= 1, 1),
        ("a payload", true, |bytes, at| bytes[at[1] - 1] ^= 1, 1),
        ("an end within a record", true, |bytes, _| bytes.truncate(bytes.len() - 7), 1),
        ("an end between two", true, |bytes, at| bytes.truncate(at[at.len() - 2]), 2),
        ("a header of what is not sealed", false, |bytes, at| bytes[at[0] + 9] ^= 1, 1),
    ];
    for (name, sealed, harm, lost) in harms {
        let places = Places::new();
        let dir = Path::new(&places.first);
        let count = refill(dir);
        let store = Store::open(dir).unwrap().unwrap();
        let numbers: Vec<u32> = store.segments.iter().map(|segment| segment.number).collect();
        let number = if sealed { numbers[1] } else { numbers[numbers.len() - 1] };
        assert!(numbers.len() > 3 && store.is_sealed(number) == sealed, "{name}");
        let path = dir.join(crate::cache::store::segment_name(number));
        let mut bytes = std::fs::read(&path).unwrap();
        let found = distill::cache::scan(&bytes, number, &store.space).unwrap();
        let at: Vec<usize> = found.records.iter().map(|record| record.offset as usize).collect();
        assert!(at.len() > 2, "{name}");
        harm(&mut bytes, &at);
        std::fs::write(&path, bytes).unwrap();
        let config =
            CacheExportConfig { cache: places.first.clone(), parquet: places.table.clone() };
        let exported = export(&config).unwrap();
        assert_eq!((exported.rows, exported.damaged.len()), (count - lost, 1), "{name}");
        assert!(exported.damaged[0].contains("segment-"), "{name}: {exported:?}");
        assert_eq!(refill(dir), lost, "{name}");
        let wanted = Exported { rows: count, damaged: Vec::new() };
        assert_eq!(export(&config).unwrap(), wanted, "{name}");
        assert_eq!(refill(dir), 0, "{name}");
    }
}

/// Of two records of a row, the newer one damaged, the older one is what there is; a link leads to the file
/// that is written, and a device is none.
#[test]
fn the_newest_whole_record_is_written_to_the_file_that_a_link_leads_to() {
    let places = Places::new();
    let dir = Path::new(&places.first);
    let count = refill(dir);
    let path = |number| dir.join(crate::cache::store::segment_name(number));
    let flip = |number, at: usize| {
        let mut bytes = std::fs::read(path(number)).unwrap();
        bytes[at] ^= 1;
        std::fs::write(path(number), bytes).unwrap();
    };
    // In the payload of the first record there is; it is written again, and then the first is whole once more.
    flip(0, 64 + 56 + 40);
    assert_eq!(refill(dir), 1);
    flip(0, 64 + 56 + 40);
    // Sealed, so that its index has what is damaged.
    let (mut writer, _) = Writer::open(dir, &manifest(2.0), 3000, None).unwrap();
    writer.seal().unwrap();
    writer.finish().unwrap();
    let mut store = Store::open(dir).unwrap().unwrap();
    let newest = store.segments.last().unwrap().number;
    let bytes = std::fs::read(path(newest)).unwrap();
    let found = distill::cache::scan(&bytes, newest, &store.space).unwrap();
    let again = found.records.last().unwrap();
    flip(newest, again.offset as usize + 56 + 20);
    assert!(store.has(&again.key));
    let link = places.table.with_file_name("link");
    std::os::unix::fs::symlink(&places.table, &link).unwrap();
    std::fs::write(&places.table, "before").unwrap();
    let to = |parquet: &Path| CacheExportConfig {
        cache: places.first.clone(),
        parquet: parquet.to_owned(),
    };
    assert_eq!(export(&to(&link)).unwrap(), Exported { rows: count, damaged: Vec::new() });
    assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(import(&CacheImportConfig { parquet: link, ..places.import() }).unwrap(), count);
    let refused = export(&to(Path::new("/dev/full"))).unwrap_err().to_string();
    assert!(refused.contains("/dev/full") && refused.contains("no file"), "{refused}");
}
