//! What a model on a card answers.

use distill::batch::TokenBatch;
use distill::signal::{DrawKey, Entries};
use serde_json::json;

use super::{BOTH, both, emulated};
use crate::language_model::{Asked, LanguageModel, Said};
use crate::ops::Precision;
use crate::ops::draws::WantedDraws;
use crate::ops::topk::Wanted;
use crate::test_support::{batch, config, relative, sequences};

#[test]
fn hidden_states_are_the_processors() {
    if !emulated("hidden_states_are_the_processors") {
        return;
    }
    for bias in [false, true] {
        let config = config(json!({"attention_bias": bias, "tie_word_embeddings": !bias}));
        let batch = batch(&[7, 1, 20], config.vocab_size, 3);
        for (precision, far) in BOTH {
            let (host, card) = both(&config, precision);
            let found = card.states(&batch).unwrap();
            let error = relative(&found, &host.states(&batch).unwrap());
            assert!(error < far, "{precision}, bias {bias}: {error}");
            // As a card records it, and as it launches what was recorded.
            for _ in 0..3 {
                assert_eq!(card.states(&batch).unwrap(), found, "{precision}");
            }
        }
    }
}

#[test]
fn several_questions_are_answered_in_one_pass() {
    if !emulated("several_questions_are_answered_in_one_pass") {
        return;
    }
    let config = config(json!({}));
    let (host, card) = both(&config, Precision::F32);
    let batch = batch(&[9, 14], config.vocab_size, 4);
    let positions = [0, 3, 8, 9, 22];
    let next = [Some(5), None, Some(60), Some(0), None];
    let named = Entries::Named((0..positions.len() as u32 * 3).map(|at| at * 4).collect());
    let listed = |k, entries| {
        Asked::Listed(Wanted { classes: 61, next: &next, temperature: 2.0, k, entries })
    };
    let keys = [1, 2, 3, 4, 5].map(|position| DrawKey { seed: 9, token_checksum: 8, position });
    let drawn = |k| {
        let (classes, temperature, keys) = (59, 1.5, &keys[..]);
        Asked::Drawn(WantedDraws { classes, next: &next, temperature, draws: 12, k, keys })
    };
    let top = Entries::Top;
    let asked = [listed(7, &top), listed(3, &named), drawn(0), drawn(4), Asked::States];
    let next_below = [Some(5), None, Some(58), Some(0), None];
    let asked = asked.map(|asked| match asked {
        Asked::Drawn(wanted) => Asked::Drawn(WantedDraws { next: &next_below, ..wanted }),
        other @ (Asked::Listed(_) | Asked::States) => other,
    });
    let asked = asked.map(|asked| (&positions[..], asked));
    let (wanted, found) = (host.answer(&batch, &asked), card.answer(&batch, &asked));
    for (wanted, found) in wanted.unwrap().into_iter().zip(found.unwrap()) {
        match (wanted.unwrap(), found.unwrap()) {
            (Said::Listed(wanted), Said::Listed(found)) => {
                assert_eq!(wanted.signal.ids, found.signal.ids);
                near(&found.signal.scaled, &wanted.signal.scaled);
                near(&found.signal.log_z, &wanted.signal.log_z);
                near(&found.signal.log_rest, &wanted.signal.log_rest);
                near(&found.next_logprob, &wanted.next_logprob);
                near(&found.next_logprob_t, &wanted.next_logprob_t);
            }
            (Said::Drawn(wanted), Said::Drawn(found)) => {
                assert_eq!(wanted.signal.exact_ids, found.signal.exact_ids);
                assert_eq!(wanted.signal.ids, found.signal.ids);
                assert_eq!(wanted.signal.counts, found.signal.counts);
                near(&found.signal.exact_log_p, &wanted.signal.exact_log_p);
                near(&found.signal.log_rest, &wanted.signal.log_rest);
                near(&found.next_logprob_t, &wanted.next_logprob_t);
            }
            (Said::States(wanted), Said::States(found)) => {
                assert!(relative(&found, &wanted) < 1e-5);
            }
            (wanted, found) => panic!("{wanted:?} {found:?}"),
        }
    }
}

#[test]
fn what_a_row_is_answered_does_not_depend_on_the_others() {
    if !emulated("what_a_row_is_answered_does_not_depend_on_the_others") {
        return;
    }
    let config = config(json!({}));
    for (precision, _) in BOTH {
        let (_, card) = both(&config, precision);
        let rows = sequences(&[19, 5, 12], config.vocab_size, 3);
        let alone = card.states(&TokenBatch::pack([&rows[1]])).unwrap();
        let among = card.states(&TokenBatch::pack(&rows)).unwrap();
        let among = &among[19 * config.hidden_size..][..alone.len()];
        // The same bits where products are; the library of products may sum batches of another size in another order.
        let far = match (card.device().as_str(), precision) {
            ("emulated", _) => 0.0,
            (_, Precision::F32) => 1e-5,
            (_, Precision::Bf16 | Precision::F16) => 1e-2,
        };
        assert!(relative(among, &alone) <= far, "{precision}");
    }
}

/// Of logits of a few units.
fn near(found: &[f32], wanted: &[f32]) {
    assert_eq!(found.len(), wanted.len());
    for (found, wanted) in found.iter().zip(wanted) {
        let same = found.is_nan() && wanted.is_nan();
        assert!(same || (found - wanted).abs() < 2e-5, "{found} {wanted}");
    }
}

#[test]
fn what_a_card_cannot_do_is_said() {
    if !emulated("what_a_card_cannot_do_is_said") {
        return;
    }
    let config = config(json!({}));
    let (_, card) = both(&config, Precision::Bf16);
    let long = batch(&[65], config.vocab_size, 4);
    assert!(card.states(&long).unwrap_err().to_string().contains("at most 64"));
    let short = batch(&[3], config.vocab_size, 4);
    let said = card.likeliest(&short, 61, 62).unwrap_err().to_string();
    assert!(said.contains("k is 62"), "{said}");
    let allowed = super::super::answers::check;
    assert!(allowed(1 << 18, 2048).is_ok());
    assert!(allowed(1 << 18, 2049).unwrap_err().to_string().contains("at most 2048 entries"));
    assert!(allowed((1 << 18) + 1, 1).unwrap_err().to_string().contains("at most 262144"));
    let said = super::super::engine::activations(Precision::F16).unwrap_err().to_string();
    assert!(said.contains("--dtype bf16"), "{said}");
}
