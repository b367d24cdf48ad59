//! A model on a card that computes by itself, emulated.

use distill::signal::Computed;
use model::card::CardModel;
use model::card::emulation::{AVAILABLE, TestDevice};

use super::*;

/// The small model on a card, and what that is called.
fn on_card() -> (Qwen3Scorer, String) {
    let weights = Weights::random(&config(), 11, &Device::Cpu).unwrap();
    let card = CardModel::new(TestDevice::default(), config(), &weights, Precision::F32).unwrap();
    let device = card.device();
    (Qwen3Scorer::new(Box::new(card)), device)
}

fn top_k(said: &Scores) -> &TopK {
    let Computed::TopK(signal) = &said.signal else { panic!("another signal") };
    signal
}

#[test]
fn batches_that_are_started_before_those_before_them_are_read_are_answered_alike() {
    const NAME: &str =
        "batches_that_are_started_before_those_before_them_are_read_are_answered_alike";
    if !AVAILABLE {
        test_support::skip(NAME, "c++", "no compiler of C++20 was found (g++ 10 or newer, $CXX)");
        return;
    }
    let jobs: Vec<ScoreJob> =
        [9, 4, 7, 12].into_iter().zip(0..).map(|(n, id)| job(id, n)).collect();
    let batches: [Vec<&ScoreJob>; 2] = [vec![&jobs[0], &jobs[1]], vec![&jobs[2], &jobs[3]]];
    let (mut card, device) = on_card();
    let alone = [0, 1, 2, 3].map(|at| card.score(&[&jobs[at]]).unwrap().remove(0).unwrap());
    let [first, second] = [0, 1].map(|at| card.start(&batches[at]).unwrap());
    assert!(!first.is_done());
    let begin = Instant::now();
    while !card.has_ended(&first) {
        assert!(begin.elapsed().as_secs() < 30, "it does not end");
    }
    // Asked for between them.
    assert_eq!(card.score(&[&jobs[1]]).unwrap().remove(0).unwrap().signal, alone[1].signal);
    let mut found = card.finish(first, &batches[0]).unwrap();
    found.extend(card.finish(second, &batches[1]).unwrap());
    let mut host = scorer();
    for ((job, alone), found) in jobs.iter().zip(&alone).zip(found) {
        let host = host.score(&[job]).unwrap().remove(0).unwrap();
        let found = found.unwrap();
        let [found, alone, host] = [&found, alone, &host].map(top_k);
        // The same bits where products are; a card's library of them may sum batches of another size in another order.
        if device == "emulated" {
            assert_eq!(found, alone, "{}", job.id);
        }
        for wanted in [alone, host] {
            assert_eq!(found.ids, wanted.ids);
            let far = |(a, b): (&f32, &f32)| (a - b).abs() > 2e-5;
            assert!(!found.scaled.iter().zip(&wanted.scaled).any(far), "{}", job.id);
            assert!(!found.log_z.iter().zip(&wanted.log_z).any(far), "{}", job.id);
        }
    }
    // What is asked for twice is an error, no answer.
    let started = card.start(&batches[0]).unwrap();
    let Started::Running(number) = started else { panic!("it is not done at once") };
    assert!(card.finish(started, &batches[0]).is_ok());
    let again = card.finish(Started::Running(number), &batches[0]).unwrap_err();
    assert!(again.to_string().contains("asked for twice"), "{again}");
}
