//! What is decided of a batch, on the processor and on a card that nobody has.

use model::ops::Precision;
use model::student::Student;

use super::*;
use crate::testing::tiny_source;

const CARD: Device = Device::Cuda(0);

struct Case {
    _dir: tempfile::TempDir,
    shape: Qwen3Config,
}

impl Case {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let shape = tiny_source(dir.path()).config;
        Self { _dir: dir, shape }
    }

    /// Six rows, 40 tokens the longest.
    fn subject(&self, device: Device, on_memory: OnMemory) -> Subject<'_> {
        Subject {
            device,
            config: &self.shape,
            training: Training { precision: Precision::F32, ..Training::default() },
            rows: vec![40, 30, 30, 30, 30, 20],
            taught: Taught::Listed { k: 4, own: 0 },
            alone: false,
            recompute: RecomputeChoice::Auto,
            on_memory,
        }
    }
}

/// Exactly so much for training.
fn room(usable: u64) -> Option<Room> {
    Some(Room { all: None, free: usable, usable })
}

fn settled(subject: &Subject<'_>, usable: u64) -> (Result<Plan, TrainError>, Vec<String>) {
    let mut notes = Vec::new();
    let plan = subject.settle(room(usable), &mut |text| notes.push(text.to_owned()));
    (plan, notes)
}

#[test]
fn a_batch_is_whole_where_it_fits_and_in_parts_that_fit_where_not() {
    let case = Case::new();
    for device in [Device::Cpu, CARD] {
        let subject = case.subject(device, OnMemory::Split);
        let total = |choice, rows: &[usize]| subject.needs(choice, rows).unwrap().total();
        let [none, blocks] = [Recompute::None, Recompute::Blocks].map(|c| total(c, &subject.rows));
        assert!(none > blocks, "{device}");
        let (plan, notes) = settled(&subject, none);
        let plan = plan.unwrap();
        assert_eq!((plan.recompute, plan.fit), (Recompute::None, Some(Fit::Whole)));
        assert!(notes.is_empty() && plan.tokens == 180 && plan.rows == 6);
        assert_eq!(plan.chosen().unwrap().total, none);
        let (plan, notes) = settled(&subject, none - 1);
        assert_eq!(plan.unwrap().recompute, Recompute::Blocks);
        assert!(notes[0].contains("--recompute blocks"), "{notes:?}");
        // The tokens of a part are as many as fit, and no more.
        let usable = blocks - 1;
        let (plan, notes) = settled(&subject, usable);
        let Some(Fit::Parts { tokens, total: taken }) = plan.unwrap().fit else {
            panic!("{notes:?}")
        };
        let of = |tokens: usize| {
            let mut rows = vec![40; tokens / 40];
            rows.extend(Some(tokens % 40).filter(|&rest| rest > 0));
            total(Recompute::Blocks, &rows)
        };
        assert!((40..180).contains(&tokens) && of(tokens) <= usable && of(tokens + 1) > usable);
        assert_eq!(taken, of(tokens));
        let said = notes.last().unwrap();
        assert!(
            said.contains("6 rows, 180 tokens") && said.contains(&tokens.to_string()),
            "{said}"
        );
    }
}

#[test]
fn what_cannot_or_must_not_be_parted_is_refused_with_both_figures() {
    let case = Case::new();
    let subject = case.subject(CARD, OnMemory::Refuse);
    let total = |rows: &[usize]| subject.needs(Recompute::Blocks, rows).unwrap().total();
    let usable = total(&subject.rows) - 1;
    let refused = settled(&subject, usable).0.unwrap_err().to_string();
    let figures = format!("takes {} and {} are free on cuda:0", amount(usable + 1), amount(usable));
    for piece in ["largest batch (6 rows, 180 tokens)", &figures, "--on-memory split"] {
        assert!(refused.contains(piece), "no {piece:?} in {refused}");
    }
    // A plan only says so.
    let plan = subject.plan(room(usable)).unwrap();
    assert_eq!((plan.fit, plan.chosen().unwrap().fits), (None, Some(false)));
    assert_eq!(plan.refusal, Some(refused));
    for on_memory in [OnMemory::Split, OnMemory::Refuse] {
        let subject = case.subject(CARD, on_memory);
        let refused = settled(&subject, total(&[40]) - 1).0.unwrap_err().to_string();
        assert!(refused.contains("a row of 40 tokens alone"), "{refused}");
        assert!(refused.contains("--max-length") && !refused.contains("split"), "{refused}");
    }
    // No batch is small enough for a student that has no room itself.
    let student = subject.needs(Recompute::Blocks, &[40]).unwrap().lasting();
    let refused = settled(&subject, student - 1).0.unwrap_err().to_string();
    assert!(
        refused.contains("before any batch") && refused.contains("smaller student"),
        "{refused}"
    );
    // On the processor it is tried, with a word.
    let (plan, notes) = settled(&case.subject(Device::Cpu, OnMemory::Split), 1);
    assert_eq!(plan.unwrap().fit, Some(Fit::Tried));
    assert!(notes[1].contains("may be ended for want of memory"), "{notes:?}");
    let strict = case.subject(Device::Cpu, OnMemory::Refuse);
    assert!(matches!(settled(&strict, 1).0, Err(TrainError::Memory { .. })));
}

#[test]
fn parts_are_preferred_to_gradients_that_do_not_fit_either() {
    let case = Case::new();
    let subject =
        Subject { alone: true, rows: vec![40; 3], ..case.subject(Device::Cpu, OnMemory::Split) };
    let total = |choice, rows: &[usize]| subject.needs(choice, rows).unwrap().total();
    // Of so few tokens the gradients of a block take more than its inputs.
    let gradients = total(Recompute::Gradients, &subject.rows);
    assert_eq!(settled(&subject, gradients).0.unwrap().recompute, Recompute::Gradients);
    let plan = settled(&subject, gradients - 1).0.unwrap();
    assert_eq!(plan.recompute, Recompute::Blocks);
    assert!(matches!(plan.fit, Some(Fit::Parts { tokens: 40..120, .. })), "{plan:?}");
    // Too little for a row alone: the leanest is tried.
    let little = total(Recompute::Blocks, &[40]) - 1;
    let plan = settled(&subject, little).0.unwrap();
    assert_eq!((plan.recompute, plan.fit), (Recompute::Gradients, Some(Fit::Tried)));
    let wished = Subject { recompute: RecomputeChoice::Gradients, ..subject.clone() };
    assert_eq!(settled(&wished, gradients - 1).0.unwrap().fit, Some(Fit::Tried));
}

#[test]
fn a_signal_that_says_everything_brings_its_matrix() {
    let case = Case::new();
    let signal = SignalConfig::of(SignalKind::Full);
    let taught = taught(&signal, 16, 24);
    let subject = Subject { taught, ..case.subject(CARD, OnMemory::Split) };
    let needs = subject.needs(Recompute::None, &subject.rows).unwrap();
    assert_eq!(needs.teacher, 4 * 16 * 24);
    let parameters = Student::state_bytes(&case.shape) / 12;
    // With what says whether steps are made.
    assert_eq!((needs.optimiser, needs.gradients), (12 * parameters, 4 * parameters + 4));
}

#[test]
fn memory_that_is_said_leaves_something_alone() {
    let said = Room::said(CARD, 24 << 30);
    assert_eq!((said.all, said.free), (Some(24 << 30), 24 << 30));
    assert_eq!(said.usable, (24 << 30) - (768 << 20));
    assert_eq!(Room::said(Device::Cpu, 3200).usable, 3100);
    assert_eq!(Room::said(CARD, 1).usable, 0);
}

#[test]
fn what_is_too_large_to_be_written_down_is_refused_before_it_is() {
    let listed = |k| Taught::Listed { k, own: 0 };
    let many = command::check_size(&[100; 50_000], listed(1)).unwrap_err().to_string();
    assert!(many.contains("50000 rows") && many.contains("--max-length"), "{many}");
    let wide = command::check_size(&[1000; 100], listed(100_000)).unwrap_err().to_string();
    assert!(wide.contains("10000000000 entries") && wide.contains("--top-k"), "{wide}");
    // So much, and one more.
    let tokens = 1 << 22;
    assert!(command::check_size(&[tokens], listed(64)).is_ok());
    assert!(command::check_size(&[tokens, 1], listed(1)).is_err());
    assert!(command::check_size(&[tokens], listed(65)).is_err());
    assert!(command::check_size(&[1000; 100], Taught::Nothing).is_ok());
}
