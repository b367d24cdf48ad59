//! How a model on a card learns.

use candle_core::{Device, Tensor};
use distill::reference::{Divergence, Tail};
use distill::signal::{DrawKey, Draws};
use kernels::emulation::TestDevice;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::json;

use super::{BOTH, emulated};
use crate::card::CardLearner;
use crate::config::Qwen3Config;
use crate::learner::Learner;
use crate::ops::Precision;
use crate::ops::head::{LossSettings, Teaching};
use crate::recompute::Recompute;
use crate::student::{Student, StudentError, Training};
use crate::test_support::{batch, config, relative, settings, signal, student_with};

fn training(precision: Precision, recompute: Recompute) -> Training {
    Training { precision, recompute, ..Training::default() }
}

/// A student on the processor in float32, and the same on a card.
fn both(config: &Qwen3Config, training: Training) -> (Student, CardLearner<TestDevice>) {
    let on_host = Training { precision: Precision::F32, ..training };
    let student = student_with(config, training);
    (student_with(config, on_host), CardLearner::new(TestDevice::default(), &student).unwrap())
}

#[test]
fn gradients_and_steps_are_the_processors() {
    if !emulated("gradients_and_steps_are_the_processors") {
        return;
    }
    for (at, (precision, far)) in BOTH.into_iter().enumerate() {
        // Of everything a configuration may have, and both ways to keep.
        let changes = json!({
            "attention_bias": at == 0, "tie_word_embeddings": at == 1, "pad_token_id": 3,
        });
        let config = config(changes);
        let recompute = if at == 0 { Recompute::None } else { Recompute::Blocks };
        let (mut host, mut card) = both(&config, training(precision, recompute));
        let settings = settings();
        for step in 0..3 {
            // Two batches of one step.
            for part in 0..2 {
                let batch = batch(&[11, 1, 17], config.vocab_size, 10 * step + part);
                let said = signal(batch.scored().len(), config.vocab_size, &settings, step);
                let said = Some(Teaching::TopK(&said));
                let wanted = host.backward(&batch, config.vocab_size, said, &settings, 0.03);
                let found = card.backward(&batch, config.vocab_size, said, &settings, 0.03);
                let (wanted, found) = (wanted.unwrap(), found.unwrap());
                assert!(relative(&found.ce, &wanted.ce) < far);
                assert!(relative(&found.kl, &wanted.kl) < far);
                assert!(relative(&found.student_mass, &wanted.student_mass) < far);
            }
            // Before steps have gone their ways: the first of AdamW go by the signs of gradients alone.
            if step == 0 {
                let wanted = Learner::take_gradients(&mut host).unwrap();
                let found = card.take_gradients().unwrap();
                for parameter in host.weights().index().parameters() {
                    let at = parameter.offset..parameter.offset + parameter.len();
                    let error = relative(&found[at.clone()], &wanted[at]);
                    assert!(error < 3.0 * far, "{precision}, {}: {error}", parameter.name);
                }
            } else {
                let wanted = host.step(1e-3, Some(0.5)).unwrap();
                let found = card.step(1e-3, Some(0.5)).unwrap();
                assert!((found / wanted - 1.0).abs() < far, "{found} {wanted}");
            }
        }
        assert_eq!(card.steps(), 2);
        let snapshot = card.snapshot().unwrap();
        let (wanted, found) = (host.weights().flat(), snapshot.weights.flat());
        let flat = |t: &Tensor| t.to_vec1::<f32>().unwrap();
        let error = relative(&flat(found), &flat(wanted));
        assert!(error < far, "{precision}, weights: {error}");
    }
}

/// Draws from random logits.
fn draws(rows: usize, classes: usize) -> Draws {
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let mut all = Draws::new(9, 3);
    for row in 0..rows {
        let logits: Vec<f64> = (0..classes).map(|_| random.random_range(-3.0..3.0)).collect();
        let key = DrawKey { seed: 2, token_checksum: 3, position: row as u32 };
        all.push_exact(&logits, 2.0, &key.uniforms(9));
    }
    all
}

#[test]
fn every_signal_teaches_as_on_the_processor() {
    if !emulated("every_signal_teaches_as_on_the_processor") {
        return;
    }
    let config = config(json!({}));
    let batch = batch(&[9, 13], config.vocab_size, 2);
    let (rows, classes) = (batch.scored().len(), config.vocab_size);
    let usual = settings();
    let (top, drawn) = (signal(rows, classes, &usual, 6), draws(rows, classes));
    let hidden = crate::ops::testing::random_matrix(7, rows, 12);
    let w = crate::ops::testing::random_matrix(8, classes, 12);
    let full = Teaching::Full { hidden: &hidden, w: &w };
    let with = |divergence| LossSettings { divergence, ..usual };
    let (beta, none) = (0.3, LossSettings { alpha: 0.0, ..usual });
    let cases = [
        (None, none),
        (Some(Teaching::TopK(&top)), LossSettings { tail: Tail::Renormalise, ..usual }),
        (Some(Teaching::TopK(&top)), with(Divergence::Jsd { beta })),
        (Some(Teaching::Draws(&drawn)), usual),
        (Some(full), usual),
        (Some(full), with(Divergence::ReverseKl)),
        (Some(full), with(Divergence::Mixture { beta })),
        (Some(full), with(Divergence::Jsd { beta })),
    ];
    let (mut host, mut card) = both(&config, Training::default());
    // All classes at once, and in blocks of 128 where there are more.
    for (number, (said, settings)) in cases.into_iter().enumerate() {
        let wanted = host.backward(&batch, classes, said, &settings, 0.05).unwrap();
        let found = card.backward(&batch, classes, said, &settings, 0.05).unwrap();
        for (name, found, wanted) in [
            ("ce", &found.ce, &wanted.ce),
            ("kl", &found.kl, &wanted.kl),
            ("teacher's mass", &found.teacher_mass, &wanted.teacher_mass),
            ("student's mass", &found.student_mass, &wanted.student_mass),
        ] {
            assert!(same(found, wanted), "case {number}, {name}: {found:?} {wanted:?}");
        }
        assert_eq!(found.argmax, wanted.argmax);
        let wanted = Learner::take_gradients(&mut host).unwrap();
        let error = relative(&card.take_gradients().unwrap(), &wanted);
        assert!(error < 5e-5, "case {number}: {error}");
        let wanted = host.evaluate(&batch, classes, said, &settings).unwrap();
        let found = card.model().losses(&batch, classes, said, &settings).unwrap();
        assert!(same(&found.kl, &wanted.kl) && same(&found.ce, &wanted.ce), "case {number}");
        let both = found.teacher.zip(wanted.teacher);
        let alike = both.map(|(f, w)| same(&f.ce, &w.ce) && f.argmax == w.argmax);
        assert_eq!(alike, matches!(said, Some(Teaching::Full { .. })).then_some(true));
    }
}

fn same(found: &[f32], wanted: &[f32]) -> bool {
    let near = |(a, b): (&f32, &f32)| (a.is_nan() && b.is_nan()) || (a - b).abs() < 3e-5;
    found.len() == wanted.len() && found.iter().zip(wanted).all(near)
}

#[test]
fn little_memory_comes_to_the_same() {
    if !emulated("little_memory_comes_to_the_same") {
        return;
    }
    let config = config(json!({"vocab_size": 300}));
    let batch = batch(&[9, 13], 299, 2);
    let settings = settings();
    let said = signal(batch.scored().len(), 299, &settings, 6);
    for precision in [Precision::F32, Precision::Bf16] {
        let gradients = |bytes: Option<usize>| {
            let (_, mut card) = both(&config, training(precision, Recompute::None));
            card.logits_bytes(bytes);
            let said = Some(Teaching::TopK(&said));
            let loss = card.backward(&batch, 299, said, &settings, 0.05).unwrap();
            (loss.kl, card.take_gradients().unwrap())
        };
        // Blocks of 128 classes, and chunks of a few positions.
        let (wanted, found) = (gradients(None), gradients(Some(128 * 4 * 5)));
        let far = if precision == Precision::F32 { 2e-5 } else { 1e-2 };
        assert!(relative(&found.0, &wanted.0) < 1e-6);
        let error = relative(&found.1, &wanted.1);
        assert!(error < far, "{precision}: {error}");
    }
}

#[test]
fn a_step_that_cannot_be_made_changes_nothing() {
    if !emulated("a_step_that_cannot_be_made_changes_nothing") {
        return;
    }
    let config = config(json!({}));
    let (_, mut card) = both(&config, Training::default());
    let state = |card: &CardLearner<TestDevice>| {
        card.snapshot().unwrap().weights.flat().to_vec1::<f32>().unwrap()
    };
    let before = state(&card);
    let batch = batch(&[9, 13], config.vocab_size, 2);
    let none = LossSettings { alpha: 0.0, ..settings() };
    // A gradient beyond float32.
    card.backward(&batch, config.vocab_size, None, &none, 1e38).unwrap();
    card.backward(&batch, config.vocab_size, None, &none, 1e38).unwrap();
    let said = card.step(0.1, Some(1.0)).unwrap_err().to_string();
    assert!(said.contains("is not finite") && said.contains("nothing was updated"), "{said}");
    assert!(card.step(f64::NAN, None).is_err());
    assert_eq!((state(&card), card.steps()), (before, 0));
    // The next one counts for itself.
    assert!(card.take_gradients().unwrap().iter().all(|&g| g == 0.0));
    let wrong = card.backward(&batch, config.vocab_size + 1, None, &none, 1.0).unwrap_err();
    assert!(wrong.to_string().contains("62 classes asked for"), "{wrong}");
    let leanest = training(Precision::F32, Recompute::Gradients);
    let said = CardLearner::new(TestDevice::default(), &student_with(&config, leanest));
    assert!(said.err().unwrap().to_string().contains("--recompute blocks"));
}

#[test]
fn steps_may_be_started_before_those_before_them_are_finished() {
    if !emulated("steps_may_be_started_before_those_before_them_are_finished") {
        return;
    }
    let config = config(json!({}));
    let none = LossSettings { alpha: 0.0, ..settings() };
    let classes = config.vocab_size;
    let batches: Vec<_> = (0..6).map(|seed| batch(&[9, 13], classes, seed)).collect();
    let state = |card: &CardLearner<TestDevice>| {
        card.snapshot().unwrap().weights.flat().to_vec1::<f32>().unwrap()
    };
    let (_, mut card) = both(&config, Training::default());
    let mut wanted = Vec::new();
    for batch in &batches {
        let loss = card.backward(batch, classes, None, &none, 0.05).unwrap();
        wanted.push((loss.ce, card.step(1e-2, Some(0.5)).unwrap()));
    }
    let (wanted_state, wanted_steps) = (state(&card), card.steps());

    // All six at once, finished from the last to the first; what is asked between them counts them in.
    let (_, mut card) = both(&config, Training::default());
    let mut started = Vec::new();
    for batch in &batches {
        let loss = card.start_backward(batch, classes, None, &none, 0.05).unwrap();
        started.push((loss, card.start_step(1e-2, Some(0.5)).unwrap()));
    }
    assert!(card.model().losses(&batches[0], classes, None, &none).is_ok());
    let mut found: Vec<_> = started
        .into_iter()
        .rev()
        .map(|(loss, norm)| {
            let norm = card.finish_step(norm).unwrap();
            (card.finish_backward(loss).unwrap().ce, norm)
        })
        .collect();
    found.reverse();
    assert_eq!(found, wanted);
    assert_eq!((state(&card), card.steps()), (wanted_state, wanted_steps));
}

#[test]
fn behind_what_is_no_number_no_step_is_made() {
    if !emulated("behind_what_is_no_number_no_step_is_made") {
        return;
    }
    let config = config(json!({}));
    let classes = config.vocab_size;
    let usual = settings();
    let batch = batch(&[9, 13], classes, 2);
    let (rows, w) = (batch.scored().len(), crate::ops::testing::random_matrix(8, classes, 12));
    let sound = crate::ops::testing::random_matrix(7, rows, 12);
    // A divergence that is no number in the first row.
    let mut numbers = sound.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    numbers[3 * 12] = f32::NAN;
    let broken = Tensor::from_vec(numbers, (rows, 12), &Device::Cpu).unwrap();
    let state = |card: &CardLearner<TestDevice>| {
        card.snapshot().unwrap().weights.flat().to_vec1::<f32>().unwrap()
    };
    let (_, mut card) = both(&config, Training::default());
    let said = |hidden| Some(Teaching::Full { hidden, w: &w });
    card.backward(&batch, classes, said(&sound), &usual, 0.05).unwrap();
    card.step(1e-2, None).unwrap();
    let (before, steps) = (state(&card), card.steps());

    let loss = card.start_backward(&batch, classes, said(&broken), &usual, 0.05).unwrap();
    let norm = card.start_step(1e-2, None).unwrap();
    let next_loss = card.start_backward(&batch, classes, said(&sound), &usual, 0.05).unwrap();
    let next_norm = card.start_step(1e-2, None).unwrap();
    let error = card.finish_backward(loss).unwrap_err();
    assert!(matches!(error, StudentError::LossNotFinite { ref rows } if rows == &[0]), "{error}");
    // All of it is forgotten: nothing of it can be finished.
    assert!(card.finish_step(norm).is_err() && card.finish_backward(next_loss).is_err());
    assert!(card.finish_step(next_norm).is_err());
    assert_eq!((state(&card), card.steps()), (before.clone(), steps));
    // A part that is given up leaves the step before it, and nothing for the next one.
    let loss = card.start_backward(&batch, classes, said(&sound), &usual, 0.05).unwrap();
    let norm = card.start_step(0.0, None).unwrap();
    card.start_backward(&batch, classes, said(&broken), &usual, 1e3).unwrap();
    card.give_up().unwrap();
    assert!(card.finish_backward(loss).is_ok() && card.finish_step(norm).is_ok());
    assert!(card.take_gradients().unwrap().iter().all(|&g| g == 0.0));
    card.backward(&batch, classes, said(&sound), &usual, 0.05).unwrap();
    card.step(1e-2, None).unwrap();
    assert_eq!(card.steps(), steps + 2);
}
