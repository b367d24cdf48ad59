//! The words and numbers a person sees.

use std::path::Path;

use model::needs::Needs;
use model::recompute::Recompute;
use student_trainer::config::{Command, Layers};
use student_trainer::needs::{Choice, Room};
use student_trainer::observer::TeacherLine;

use super::*;

/// The settings of a run with everything at its default.
pub(crate) fn config() -> Config {
    let flags = [
        ("teacher", "grpc://10.0.0.7:50051"),
        ("student", "small"),
        ("train-file", "rows.jsonl"),
        ("output-dir", "out"),
    ];
    let flags = flags.map(|(name, text)| (name, text.to_owned())).into_iter().collect();
    Config::from_layers(&Layers::new(Command::Train, flags, |_| None, None).unwrap()).unwrap()
}

/// The facts of a run that writes to `dir`.
pub(crate) fn facts(dir: &Path) -> RunFacts {
    RunFacts {
        teacher: Some(TeacherLine {
            url: "grpc://10.0.0.7:50051".into(),
            model: "Qwen/Qwen3-4B".into(),
            revision: "1cfa9a7".into(),
            fingerprint: "0123456789abcdef".repeat(4),
            parameters: 4_022_468_096,
            dtype: "bf16".into(),
            device: "cuda:0".into(),
        }),
        student: "Qwen/Qwen3-0.6B".into(),
        student_parameters: 596_049_920,
        tail: student_trainer::config::TailKind::Bucket,
        classes: 151_936,
        device: "cuda:0".into(),
        dtype: "bf16".into(),
        train_rows: 9846,
        train_tokens: 4_500_000,
        eval_rows: 100,
        steps_per_epoch: 2462,
        total_steps: 7386,
        start_step: 0,
        output_dir: dir.to_owned(),
        memory: memory(),
    }
}

/// A plan for a card on which blocks are computed again.
pub(crate) fn memory() -> Plan {
    let choice = |recompute, activations: u64, fits| {
        let needs = Needs {
            model: 1_192_099_840,
            optimiser: 7_152_599_040,
            gradients: 2_384_199_680,
            activations,
            loss: 900 << 20,
            ..Needs::default()
        };
        Choice { recompute, needs, total: needs.total(), fits: Some(fits) }
    };
    let (none, blocks) = (Recompute::None, Recompute::Blocks);
    Plan {
        device: "cuda:0".to_owned(),
        dtype: "bf16".to_owned(),
        rows: 4,
        tokens: 4096,
        room: Some(Room { all: Some(24 << 30), free: 10 << 30, usable: (10 << 30) - (256 << 20) }),
        choices: vec![choice(none, 5 << 30, false), choice(blocks, 1 << 30, true)],
        recompute: blocks,
        fit: Some(Fit::Whole),
        refusal: None,
    }
}

/// A summary with the numbers of a table.
pub(crate) fn summary() -> Summary {
    let json = serde_json::json!({
        "teacher_perplexity": 8.25, "teacher_perplexity_row_mean": 8.5,
        "student_perplexity_before": 77.6, "student_perplexity_before_row_mean": 80.0,
        "student_perplexity_after": 42.625, "student_perplexity_after_row_mean": 43.5,
        "eval_kl_before": 1.5, "eval_kl_after": 0.75,
        "agreement_before": 0.3125, "agreement_after": 0.5,
        "evaluations": [], "epoch_loss": [3.5], "steps": 5, "tokens": 2560,
        "train_seconds": 0.5, "tokens_per_second": 5120.0, "teacher_wait_fraction": 0.25,
        "wire_bytes_per_token": 396.0, "peak_rss_bytes": null, "fingerprint_teacher": null,
        "seed": 42, "stopped_early": false, "config": {},
    });
    serde_json::from_value(json).unwrap()
}

/// Takes text until it is flushed, then fails.
struct Failing(io::ErrorKind);

impl Write for Failing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Err(self.0.into())
    }
}

#[test]
fn a_result_that_cannot_be_written_is_an_error_but_a_reader_who_left_is_none() {
    let mut out = Vec::new();
    deliver(&mut out, "42\n").unwrap();
    assert_eq!(out, b"42\n");
    deliver(Failing(io::ErrorKind::BrokenPipe), "42\n").unwrap();
    let error = deliver(Failing(io::ErrorKind::StorageFull), "42\n").unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
}

#[test]
fn the_table_compares_teacher_before_and_after() {
    let wanted = "                   perplexity   row mean   KL to teacher   agreement\n  \
                  ------------------------------------------------------------------\n  \
                  teacher               8.250      8.500\n  \
                  student before        77.60      80.00           1.500      31.2 %\n  \
                  student after         42.62      43.50          0.7500      50.0 %\n";
    assert_eq!(results(&summary()).to_text(), wanted);
    let alone = Summary { teacher_perplexity: None, ..summary() };
    assert_eq!(results(&alone).rows.len(), 2);
    let of = |config| results(&Summary { config, ..summary() }).head[3].clone();
    assert_eq!(of(serde_json::json!({ "divergence": "forward-kl", "beta": 0.3 })), "KL to teacher");
    let jsd = serde_json::json!({ "divergence": "jsd", "beta": 0.3 });
    assert_eq!(of(jsd), "jsd with beta 0.3 to teacher");
}

#[test]
fn the_banner_names_both_models_and_what_matters() {
    let console = Console::new(ProgressKind::Plain);
    let text = banner(&console, &facts(Path::new("out")), &config());
    for piece in [
        "Qwen/Qwen3-0.6B  (596.0 M parameters, bf16 on cuda:0)",
        "Qwen/Qwen3-4B 1cfa9a7  (4.02 B parameters, bf16 on cuda:0) at grpc://10.0.0.7:50051",
        "fingerprint 0123456789ab",
        "9,846 rows, 4.5 M tokens an epoch; 100 held-out rows",
        "alpha 0.7, temperature 5, forward-kl on top-k 64 + bucket",
        "7386 of 4 rows, learning rate 5e-5 constant",
        "11.9 GiB of 10.0 GiB free: model 1.1 GiB, optimiser 6.7 GiB, gradients 2.2 GiB, activations 1.0 GiB, loss 900 \
         MiB (4 rows, 4,096 tokens; recompute blocks)",
    ] {
        assert!(text.contains(piece), "{piece} is not in\n{text}");
    }
}

#[test]
fn a_line_tells_loss_speed_waiting_and_time_left() {
    let mut progress = Progress::new(Console::new(ProgressKind::None), "", "KL".to_owned());
    progress.started(&facts(Path::new("out")));
    let step = crate::metrics::tests::step(6);
    progress.step(&step);
    // 512 tokens at 4096 a second, a quarter of it waiting; 7380 steps of 0.125 s are left.
    let wanted = "loss 3.125  4,096 tokens/s  wait for teacher 25 %  15 min 23 s left";
    assert_eq!(progress.line(&step), wanted);
}

#[test]
fn a_signal_that_holds_little_of_the_teacher_is_called_so() {
    let warning = thin_signal(0.053, Some(0.42), &config()).unwrap();
    assert!(warning.contains("top-k 64 hold only 5.3 %"), "{warning}");
    assert!(warning.contains("temperature 5") && warning.contains("42 % of the"), "{warning}");
    assert!(warning.contains("--signal coded"), "{warning}");
    assert_eq!(thin_signal(0.88, Some(0.1), &config()), None);
    let mut of_both = config();
    of_both.signal.kind = SignalKind::Candidates;
    let warning = thin_signal(0.053, None, &of_both).unwrap();
    assert!(warning.contains("of the teacher and 64 of the student hold only 5.3 %"), "{warning}");
}
