//! Whole runs: a tiny student, a teacher over loopback, and the numbers they come to.

#[path = "train_ends_tests.rs"]
mod ends;

use super::*;
use crate::observer::Silent;
use crate::outputs::Reuse;
use crate::setup::Material;
use crate::testing::{FakeTeacher, Recorder, Served, config, material, row_set, rows, tiny_source};
use std::path::Path;

fn serve(root: &Path) -> Served {
    FakeTeacher::of(&tiny_source(&root.join("model"))).serve()
}

/// Runs to the end (or a stop) in `root/out`.
fn run(
    root: &Path,
    out: &str,
    teacher: &str,
    options: &[(&'static str, &str)],
    observer: &mut dyn Observer,
    stop: &Stop,
) -> Result<Summary, TrainError> {
    let mut all = vec![("teacher", teacher)];
    all.extend_from_slice(options);
    let config = config(&root.join(out), &all);
    let claim = crate::outputs::claim(&config.output_dir, Reuse::Anything)?;
    let run = Run::assemble(&config, claim, material(&root.join("model")), observer, stop)?;
    carry_out(run, observer, stop)
}

fn weights(root: &Path, out: &str) -> Vec<u8> {
    std::fs::read(root.join(out).join("model.safetensors")).unwrap()
}

#[test]
fn a_student_comes_nearer_to_its_teacher_and_leaves_what_the_contract_lists() {
    let root = tempfile::tempdir().unwrap();
    let served = serve(root.path());
    let mut told = Recorder::default();
    let options = [
        ("teacher", served.url.as_str()),
        ("num-train-epochs", "16"),
        ("per-device-train-batch-size", "8"),
        ("alpha", "1"),
    ];
    let config = config(&root.path().join("out"), &options);
    let all = row_set("train.jsonl", rows(79, 1));
    let material = Material { rows: all, ..material(&root.path().join("model")) };
    let claim = crate::outputs::claim(&config.output_dir, Reuse::Nothing).unwrap();
    let run = Run::assemble(&config, claim, material, &mut told, &Stop::default()).unwrap();
    let summary = carry_out(run, &mut told, &Stop::default()).unwrap();
    let (before, after) = (summary.eval_kl_before.unwrap(), summary.eval_kl_after.unwrap());
    assert!(after < 0.3 * before, "held-out KL {before} -> {after}");
    assert!(summary.agreement_after.unwrap() > summary.agreement_before.unwrap());
    assert_eq!(summary.steps, 160);
    assert_eq!(summary.epoch_loss.len(), 16);
    assert!(summary.epoch_loss[15] < summary.epoch_loss[0]);
    // 79 rows in batches of 8: ten steps an epoch, the mean of their losses is the epoch's.
    let first: f64 = told.steps[..10].iter().map(|s| s.loss).sum::<f64>() / 10.0;
    assert!((summary.epoch_loss[0] - first).abs() < 1e-12);
    assert_eq!(told.evaluations.len(), 17);
    assert!(summary.wire_bytes_per_token > 0.0);
    let out = root.path().join("out");
    for name in ["config.json", "model.safetensors", "tokenizer.json", "summary.json"] {
        assert!(out.join(name).is_file(), "{name}");
    }
    let source = std::fs::read(root.path().join("model/tokenizer.json")).unwrap();
    assert_eq!(std::fs::read(out.join("tokenizer.json")).unwrap(), source);
}

#[test]
fn the_numbers_of_a_step_are_those_of_the_reference() {
    let root = tempfile::tempdir().unwrap();
    let served = serve(root.path());
    let mut told = Recorder::default();
    let options =
        [("max-steps", "1"), ("top-k", "24"), ("shuffle", "false"), ("learning-rate", "0")];
    let summary =
        run(root.path(), "out", &served.url, &options, &mut told, &Stop::default()).unwrap();
    let step = &told.steps[0];
    // All classes were sent, so all mass was.
    assert!((step.teacher_mass.unwrap() - 1.0).abs() < 1e-5);
    assert!((step.student_mass.unwrap() - 1.0).abs() < 1e-5);
    let (kl, ce) = (step.kl.unwrap(), step.ce);
    assert!((step.loss - (0.7 * kl + 0.3 * ce)).abs() < 1e-12);
    assert_eq!(step.tokens, rows(10, 1)[..3].iter().map(|r| r.len() as u64).sum::<u64>());
    // The teacher's perplexity, from its logits in float64.
    let mut nll = distill::perplexity::Nll::default();
    for row in rows(4, 2).iter() {
        nll.add_row(row.scored().map(|t| {
            let y = crate::testing::logits(row.ids[t], crate::testing::CLASSES);
            let log_z = distill::signal::log_sum_exp(y.iter().copied());
            (log_z - y[row.ids[t + 1] as usize]) as f32
        }));
    }
    let found = summary.teacher_perplexity.unwrap();
    assert!((found - nll.perplexity().unwrap()).abs() < 1e-4, "{found}");
    let found = summary.teacher_perplexity_row_mean.unwrap();
    assert!((found - nll.perplexity_row_mean().unwrap()).abs() < 1e-4, "{found}");
    // Nothing was learned at a rate of 0.
    assert_eq!(summary.student_perplexity_before, summary.student_perplexity_after);
}

/// Every divergence reaches loss, log and evaluation: those of the ends of beta are the KLs, a mixture
/// is what it says. That each is right, the operation's own tests show.
#[test]
fn a_divergence_is_what_its_beta_says() {
    let root = tempfile::tempdir().unwrap();
    let served = serve(root.path());
    let with = |divergence: &str, beta: &str| {
        let mut told = Recorder::default();
        let mut options = vec![
            ("max-steps", "1"),
            ("learning-rate", "0"),
            ("temperature", "1"),
            ("divergence", divergence),
        ];
        options.extend((!beta.is_empty()).then_some(("beta", beta)));
        let out = format!("{divergence}-{beta}");
        let summary =
            run(root.path(), &out, &served.url, &options, &mut told, &Stop::default()).unwrap();
        [told.steps[0].kl.unwrap(), summary.eval_kl_after.unwrap()]
    };
    let (forward, reverse) = (with("forward-kl", ""), with("reverse-kl", ""));
    let (mixture, jsd) = (with("mixture", "0.25"), with("jsd", "0.5"));
    assert_eq!((with("jsd", "0"), with("jsd", "1")), (forward, reverse));
    for ((forward, reverse), (mixture, jsd)) in
        forward.into_iter().zip(reverse).zip(mixture.into_iter().zip(jsd))
    {
        assert!((forward / reverse - 1.0).abs() > 1e-3, "{forward} {reverse}");
        assert!((mixture - 0.75 * forward - 0.25 * reverse).abs() < 1e-6 * forward, "{mixture}");
        // Lin 1991: at most a quarter of the mean of both.
        assert!(jsd > 0.0 && jsd <= (forward + reverse) / 8.0, "{jsd} {forward} {reverse}");
    }
}

#[test]
fn the_same_seed_gives_the_same_bits_and_another_seed_others() {
    let root = tempfile::tempdir().unwrap();
    let served = serve(root.path());
    let once = |out: &str, seed: &str| {
        let options = [("seed", seed), ("max-steps", "6")];
        run(root.path(), out, &served.url, &options, &mut Silent, &Stop::default()).unwrap();
        weights(root.path(), out)
    };
    assert_eq!(once("a", "1"), once("b", "1"));
    assert_ne!(once("a", "1"), once("c", "2"));
}

/// Steps of a run in micro-batches: losses and gradient norms, and the first moments at the end.
fn steps_in(
    root: &Path,
    teacher: &str,
    (batch, accumulate): (&str, &str),
    rate: &str,
) -> (Vec<(f64, f64)>, Vec<f32>) {
    let out = format!("{batch}x{accumulate} at {rate}");
    let mut told = Recorder::default();
    let options = [
        ("per-device-train-batch-size", batch),
        ("gradient-accumulation-steps", accumulate),
        ("learning-rate", rate),
        ("max-steps", "6"),
    ];
    run(root, &out, teacher, &options, &mut told, &Stop::default()).unwrap();
    let state = root.join(out).join("checkpoints/step-000006/training_state.safetensors");
    let state = candle_core::safetensors::load(state, &candle_core::Device::Cpu).unwrap();
    let numbers = told.steps.iter().map(|s| (s.loss, s.grad_norm)).collect();
    (numbers, state["exp_avg"].to_vec1().unwrap())
}

/// At a rate of 0 the weights stay, so every step of every split computes the same sums in another
/// order: 1e-6, ten roundings of float32. The first moments are linear in the gradients of all six
/// steps and stand for the whole of them.
#[test]
fn loss_and_gradient_of_a_step_do_not_depend_on_micro_batches() {
    let root = tempfile::tempdir().unwrap();
    let served = serve(root.path());
    let steps = |split| steps_in(root.path(), &served.url, split, "0");
    let (whole, gradient) = steps(("4", "1"));
    let square = |v: f32| f64::from(v) * f64::from(v);
    let norm: f64 = gradient.iter().map(|g| square(*g)).sum();
    assert!(norm > 0.0);
    for split in [("2", "2"), ("1", "4")] {
        let (numbers, split_gradient) = steps(split);
        assert_eq!(numbers.len(), 6);
        for (split, whole) in numbers.iter().zip(&whole) {
            assert!((split.0 / whole.0 - 1.0).abs() < 1e-6, "loss {split:?} {whole:?}");
            assert!((split.1 / whole.1 - 1.0).abs() < 1e-6, "norm {split:?} {whole:?}");
        }
        let pairs = split_gradient.iter().zip(&gradient);
        let error = (pairs.map(|(a, b)| square(a - b)).sum::<f64>() / norm).sqrt();
        assert!(error < 1e-6, "gradients in {split:?}: {error:e}");
    }
}

/// With updates between the steps the same roundings come back enlarged: AdamW divides a gradient
/// by its own size, so one near 0 moves its weight as far as any other, in a direction that its
/// last bits decide. A hundredfold of the bound above remains after five updates at a rate of 0.01.
#[test]
fn a_run_in_micro_batches_stays_beside_the_whole_one() {
    let root = tempfile::tempdir().unwrap();
    let served = serve(root.path());
    let steps = |split| steps_in(root.path(), &served.url, split, "0.01").0;
    let whole = steps(("4", "1"));
    for split in [("2", "2"), ("1", "4")] {
        for (split, whole) in steps(split).iter().zip(&whole) {
            assert!((split.0 / whole.0 - 1.0).abs() < 1e-5, "loss {split:?} {whole:?}");
            assert!((split.1 / whole.1 - 1.0).abs() < 1e-4, "norm {split:?} {whole:?}");
        }
    }
}

#[test]
fn plain_training_needs_no_teacher() {
    let root = tempfile::tempdir().unwrap();
    let mut told = Recorder::default();
    let options = [("alpha", "0"), ("num-train-epochs", "5")];
    let summary = run(root.path(), "out", "", &options, &mut told, &Stop::default()).unwrap();
    assert!(summary.epoch_loss[4] < summary.epoch_loss[0]);
    assert_eq!(summary.teacher_perplexity, None);
    assert_eq!((told.steps[0].kl, told.steps[0].wire_bytes), (None, 0));
    assert!((told.steps[0].loss - told.steps[0].ce).abs() < 1e-12);
    assert!(summary.student_perplexity_after.is_some());
}

#[test]
fn later_epochs_ask_the_teacher_nothing_and_train_to_the_same_bits() {
    let root = tempfile::tempdir().unwrap();
    let go = |out: &str, memory: &str| {
        let served = serve(root.path());
        let options = [("num-train-epochs", "3"), ("teacher-memory", memory)];
        let mut told = Recorder::default();
        let summary =
            run(root.path(), out, &served.url, &options, &mut told, &Stop::default()).unwrap();
        let answered = served.teacher.mischief.answered.load(std::sync::atomic::Ordering::Relaxed);
        (answered, told.steps, summary.wire_bytes_per_token)
    };
    let (kept, steps, bytes) = go("kept", "1");
    let (asked, _, bytes_asked) = go("asked", "0");
    // Without room two more epochs of 10 rows, and three more evaluations of 4.
    assert_eq!(asked, kept + 2 * 10 + 3 * 4);
    assert_eq!(weights(root.path(), "kept"), weights(root.path(), "asked"));
    // A request's number and the times in an answer take a byte more or less.
    assert!((bytes - bytes_asked).abs() < 1.0, "{bytes} and {bytes_asked} bytes a token");
    for step in steps {
        assert_eq!(step.wire_bytes > 0, step.epoch <= 1.0, "step {}", step.step);
        assert_eq!(step.wire_tokens > 0, step.wire_bytes > 0, "step {}", step.step);
    }
}

#[test]
fn what_is_computed_again_changes_no_bit_of_the_student() {
    let root = tempfile::tempdir().unwrap();
    let served = serve(root.path());
    let go = |recompute: &str| {
        let mut told = Recorder::default();
        let options = [("recompute", recompute)];
        run(root.path(), recompute, &served.url, &options, &mut told, &Stop::default()).unwrap();
        (
            weights(root.path(), recompute),
            told.steps.iter().map(|s| s.grad_norm).collect::<Vec<_>>(),
        )
    };
    let kept = go("none");
    assert_eq!(go("blocks"), kept);
    assert_eq!(go("gradients"), kept);
}
