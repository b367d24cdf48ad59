//! A small random Qwen3 as the teacher, and the models of the shared folder where they are.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use distill::batch::{Sequence, TokenBatch};
use distill::codec::Codec;
use distill::signal::{Entries, TopK, log_sum_exp};
use model::gguf::write::{Mixture, write};
use model::qwen3::Qwen3;
use model::weights::Weights;
use proto::convert::score_request;
use test_support::shared;

#[path = "qwen3_scorer_ahead_tests.rs"]
mod ahead;

use distill::queue::Priority;

use super::*;
use crate::scorer::{Scores, all_positions};
use crate::serve_tests::harness::{Server, assembler};
use crate::settings::Settings;

/// Classes of the small model.
pub(crate) const CLASSES: usize = 97;
/// Numbers of its hidden states.
pub(crate) const HIDDEN: usize = 24;

const CONFIG: &str = r#"{
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_act": "silu",
    "attention_bias": false, "head_dim": 8, "hidden_size": 24, "initializer_range": 0.25,
    "intermediate_size": 40, "max_position_embeddings": 64, "num_attention_heads": 4,
    "num_hidden_layers": 2, "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
    "tie_word_embeddings": false, "vocab_size": 97
}"#;

fn config() -> Qwen3Config {
    Qwen3Config::from_json(CONFIG).unwrap()
}

/// The small model.
pub(crate) fn scorer() -> Qwen3Scorer {
    scorer_in(Precision::F32)
}

/// Weights held and products computed in this precision.
fn scorer_in(precision: Precision) -> Qwen3Scorer {
    Qwen3Scorer::new(Box::new(network_in(precision)))
}

fn network_in(precision: Precision) -> Qwen3 {
    let drawn = Weights::random(&config(), 11, &Device::Cpu).unwrap();
    let flat = drawn.flat().to_dtype(precision.dtype()).unwrap();
    let weights = Weights::from_flat(flat, drawn.index().clone()).unwrap();
    Qwen3::new(config(), weights, precision).unwrap()
}

fn job(id: u64, length: usize) -> ScoreJob {
    ScoreJob {
        id,
        tokens: (0..length as u32).map(|t| (t * 31 + id as u32 * 7) % 89).collect(),
        ranges: all_positions(length),
        temperature: 1.0 + id as f32 / 2.0,
        k: 1 + id as usize % 9,
        codec: Codec::Raw,
        classes: CLASSES - id as usize % 3,
        entries: Entries::Top,
        priority: Priority::Normal,
    }
}

/// Its output matrix.
pub(crate) fn head() -> Vec<f32> {
    network_in(Precision::F32).head().flatten_all().unwrap().to_vec1().unwrap()
}

/// Jobs of all lengths about it.
pub(crate) fn jobs() -> Vec<ScoreJob> {
    let mut jobs: Vec<ScoreJob> = [5, 1, 33, 64, 2, 17, 40]
        .into_iter()
        .zip(0..)
        .map(|(length, id)| job(id, length))
        .collect();
    jobs[2].ranges = vec![0..3, 10..11, 31..33];
    let named = |count: usize| (0..count as u32).map(|i| (i * 37 + 5) % 89).collect();
    // The same tokens at every position, and others at each.
    jobs[4].entries = Entries::Named(named(jobs[4].k));
    jobs[6].entries = Entries::Named(named(jobs[6].k * 40));
    jobs
}

fn score(scorer: &mut Qwen3Scorer, jobs: &[&ScoreJob]) -> Vec<Scores> {
    let scores = Scorer::score(scorer, jobs).unwrap();
    scores.into_iter().map(Result::unwrap).collect()
}

/// All numbers as bits: NaN equals NaN, and nothing else is nearly enough.
fn bits(scores: &Scores) -> (usize, Vec<u32>, Vec<u32>) {
    let TopK { k, ids, scaled, log_z, log_rest } = scores.signal.top_k().unwrap();
    let floats = scaled.iter().chain(log_z).chain(log_rest).chain(&scores.next_logprob);
    (*k, ids.clone(), floats.map(|value| value.to_bits()).collect())
}

#[test]
fn scores_are_those_of_the_definition() {
    let (mut scorer, network) = (scorer(), network_in(Precision::F32));
    for job in jobs() {
        let found = score(&mut scorer, &[&job]).remove(0);
        let row = Sequence::all_scored(job.tokens.clone()).unwrap();
        let hidden = network.forward_hidden(&TokenBatch::pack([&row])).unwrap();
        let hidden: Vec<Vec<f32>> = hidden.to_vec2().unwrap();
        let head: Vec<Vec<f32>> = network.head().to_vec2().unwrap();
        let dot = |a: &[f32], b: &[f32]| -> f64 {
            a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
        };
        let mut wanted = TopK::new(job.k);
        for (row, (t, next)) in job.positions().zip(job.next_tokens()).enumerate() {
            let hidden = &hidden[t as usize];
            let logits: Vec<f64> = head[..job.classes].iter().map(|row| dot(row, hidden)).collect();
            let temperature = f64::from(job.temperature);
            match job.entries.named_at(row, job.k) {
                None => wanted.push_exact(&logits, temperature),
                Some(ids) => wanted.push_exact_named(ids, &logits, temperature),
            }
            for (t, found) in [(1.0, &found.next_logprob), (temperature, &found.next_logprob_t)] {
                let log_z = log_sum_exp(logits.iter().map(|y| y / t));
                let exact = next.map(|next| logits[next as usize] / t - log_z);
                let off = exact.map(|exact| (f64::from(found[row]) - exact).abs());
                assert!(off.map_or(found[row].is_nan(), |off| off < 1e-5), "{off:?}");
            }
        }
        assert_eq!(
            (found.signal.top_k().unwrap().k, &found.signal.top_k().unwrap().ids),
            (job.k, &wanted.ids)
        );
        let close = |found: &[f32], wanted: &[f32]| {
            assert_eq!(found.len(), wanted.len());
            found
                .iter()
                .zip(wanted)
                .for_each(|(f, w)| assert!((f - w).abs() < 1e-5, "{f} for {w}"));
        };
        close(&found.signal.top_k().unwrap().scaled, &wanted.scaled);
        close(&found.signal.top_k().unwrap().log_z, &wanted.log_z);
        close(&found.signal.top_k().unwrap().log_rest, &wanted.log_rest);
    }
}

#[test]
fn a_reply_does_not_depend_on_its_batch_to_the_last_bit() {
    let mut jobs = jobs();
    // Half of them ask for the same, and are answered by one sweep.
    for at in [1, 3, 5] {
        (jobs[at].k, jobs[at].temperature, jobs[at].classes) = (5, 2.0, CLASSES);
    }
    let batches: [&[usize]; 4] =
        [&[0, 1, 2, 3, 4, 5, 6], &[6, 5, 4, 3, 2, 1, 0], &[3, 1], &[1, 1, 2, 1, 0]];
    for precision in [Precision::F32, Precision::Bf16, Precision::F16] {
        let mut scorer = scorer_in(precision);
        let alone: Vec<_> = jobs.iter().map(|job| bits(&score(&mut scorer, &[job])[0])).collect();
        for batch in batches {
            let packed: Vec<&ScoreJob> = batch.iter().map(|&at| &jobs[at]).collect();
            for (&at, scores) in batch.iter().zip(score(&mut scorer, &packed)) {
                assert!(bits(&scores) == alone[at], "job {at} in batch {batch:?}, {precision}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_wire_changes_no_bit() {
    let load = || {
        let facts = crate::testing::facts(CLASSES as u32);
        let facts = Facts { tokenizer_size: 90, max_positions: 64, ..facts };
        let text = Arc::new(crate::testing::FakeText { vocab_size: 90 });
        Ok(Loaded { scorer: Box::new(scorer()), text, facts })
    };
    let mut server = Server::start_loading(load, Settings::DEFAULT).await;
    server.ready().await;
    let mut stream = server.score().await;
    let jobs = jobs();
    for job in &jobs {
        stream.send(score_request(job)).await;
    }
    for _ in &jobs {
        let reply = stream.next().await;
        let job = &jobs[reply.id as usize];
        let scored = assembler(job).push(&reply).unwrap().unwrap();
        let alone = score(&mut scorer(), &[job]).remove(0);
        // What does not travel is as it was.
        let next_logprob_t = alone.next_logprob_t.clone();
        let (signal, next_logprob) = (scored.signal, scored.next_logprob);
        let signal = signal.top_k().unwrap().clone().into();
        let received = Scores { signal, next_logprob, next_logprob_t };
        assert!(bits(&received) == bits(&alone), "job {}", job.id);
    }
}

#[test]
fn numbers_that_are_not_finite_are_the_fault_of_one_sequence() {
    let network = network_in(Precision::F32);
    let index = network.weights().index().clone();
    let embedding = index.get("model.embed_tokens.weight").unwrap();
    let mut flat: Vec<f32> = network.weights().flat().to_vec1().unwrap();
    // The embedding of token 88, which only the first job holds.
    flat[embedding.offset + 88 * config().hidden_size] = f32::NAN;
    let flat = Tensor::from_vec(flat, index.total(), &Device::Cpu).unwrap();
    let weights = Weights::from_flat(flat, index).unwrap();
    let broken = Qwen3::new(config(), weights, Precision::F32).unwrap();
    let mut broken = Qwen3Scorer::new(Box::new(broken));
    let (mut poisoned, good) = (job(0, 4), job(1, 9));
    poisoned.tokens = vec![3, 88, 4, 5];
    assert!(!good.tokens.contains(&88));
    let scores = Scorer::score(&mut broken, &[&poisoned, &good]).unwrap();
    let error = scores[0].as_ref().unwrap_err().to_string();
    assert!(error.contains("not a finite number") && !error.contains('\n'), "{error}");
    let sound = score(&mut scorer(), &[&good]);
    assert!(bits(scores[1].as_ref().unwrap()) == bits(&sound[0]));
}

#[test]
fn batches_that_were_asked_for_are_in_the_profile() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("trace.json");
    let spans = || -> Vec<(String, f64, f64)> {
        let text = std::fs::read_to_string(&path).unwrap();
        let trace: serde_json::Value = serde_json::from_str(&text).unwrap();
        let events = trace["traceEvents"].as_array().unwrap().iter();
        let spans = events.filter(|event| event["ph"] == "X").map(|event| {
            let [first, long] = ["ts", "dur"].map(|key| event[key].as_f64().unwrap());
            (event["name"].as_str().unwrap().to_owned(), first, first + long)
        });
        spans.collect()
    };
    let profiled = |batches: &str| {
        let profile = (path.clone(), batches.parse().unwrap());
        let mut scorer = scorer().with_timing(Some(Timing::new(profile)));
        // The first of all is the server's own, to warm up.
        for _ in 0..4 {
            score(&mut scorer, &[&job(0, 4), &job(1, 9)]);
        }
        scorer
    };
    let scorer = profiled("2..3");
    let names: Vec<String> = spans().into_iter().map(|(name, ..)| name).collect();
    let between = "between batches".to_owned();
    let batch = |n: usize| format!("batch {n}: 2 sequences, 13 tokens");
    assert_eq!(names, [batch(2), between, batch(3)]);
    assert!(spans().windows(2).all(|two| two[0].2 <= two[1].1 + 2e-3), "{:?}", spans());
    drop(scorer);
    std::fs::remove_file(&path).unwrap();
    // A server that ends before.
    drop(profiled("3..9"));
    assert_eq!(spans().len(), 1);
}

fn source(model: &Path) -> ModelSource {
    let model = model.to_str().unwrap().to_owned();
    let (device, dtype) = ("cpu".into(), Dtype::Auto);
    let calibrating = Calibrating::default();
    ModelSource { model, revision: None, device, dtype, calibrating, batches: None }
}

fn refusal(source: ModelSource) -> String {
    source.load().err().expect("it was loaded").to_string()
}

#[test]
fn places_that_hold_no_model_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("nothing-here");
    assert!(refusal(source(&missing)).contains("nothing-here"));
    assert!(refusal(source(dir.path())).contains("config.json"));
    let other_device = ModelSource { device: "tpu".into(), ..source(dir.path()) };
    assert!(refusal(other_device).contains("accepted: auto, cpu, cuda:N"));
    std::fs::write(dir.path().join("config.json"), CONFIG).unwrap();
    std::fs::write(dir.path().join("model.safetensors"), [0u8; 40]).unwrap();
    assert!(refusal(source(dir.path())).contains("tokenizer.json"));
}

/// PyTorch and transformers in float64, whole batch packed: ../shared/oracle/README.md.
#[test]
fn the_golden_models_give_the_golden_signals() {
    let test = "the_golden_models_give_the_golden_signals";
    for case in ["a", "b", "c"] {
        let Some(dir) = shared(&format!("oracle/{case}"), test) else { return };
        let config = Qwen3Config::from_dir(&dir.join("teacher")).unwrap();
        let weights =
            Weights::load(&dir.join("teacher"), &config, DType::F32, &Device::Cpu).unwrap();
        let classes = config.vocab_size;
        let network = Qwen3::new(config, weights, Precision::F32).unwrap();
        let mut scorer = Qwen3Scorer::new(Box::new(network));
        let golden =
            candle_core::safetensors::load(dir.join("golden.safetensors"), &Device::Cpu).unwrap();
        let ids: Vec<Vec<i64>> = golden["input_ids"].to_vec2().unwrap();
        let mask: Vec<Vec<i64>> = golden["attention_mask"].to_vec2().unwrap();
        let jobs: Vec<ScoreJob> = ids
            .iter()
            .zip(&mask)
            .map(|(ids, mask)| {
                let length = mask.iter().sum::<i64>() as usize;
                let tokens = ids[..length].iter().map(|&id| id as u32).collect();
                let ranges = all_positions(length);
                ScoreJob { tokens, ranges, temperature: 5.0, k: 8, classes, ..job(0, 1) }
            })
            .collect();
        let floats = |name: &str| golden[name].to_dtype(DType::F32).unwrap();
        let logits: Vec<Vec<Vec<f32>>> = floats("teacher_logits").to_vec3().unwrap();
        let top_ids = &golden["teacher_topk_indices"];
        let top_ids: Vec<Vec<Vec<i64>>> = top_ids.to_dtype(DType::I64).unwrap().to_vec3().unwrap();
        let top: Vec<Vec<Vec<f32>>> = floats("teacher_topk_logits").to_vec3().unwrap();
        let z1: Vec<Vec<f32>> = floats("teacher_logsumexp_T1").to_vec2().unwrap();
        let z5: Vec<Vec<f32>> = floats("teacher_logsumexp_T5").to_vec2().unwrap();

        let scores = score(&mut scorer, &jobs.iter().collect::<Vec<_>>());
        let close = |found: f32, wanted: f32| {
            assert!((found - wanted).abs() <= 1e-5 * (1.0 + wanted.abs()), "{found} for {wanted}");
        };
        for (b, (job, scores)) in jobs.iter().zip(&scores).enumerate() {
            for (t, next) in job.next_tokens().enumerate() {
                for i in 0..8 {
                    assert_eq!(
                        i64::from(scores.signal.top_k().unwrap().ids[t * 8 + i]),
                        top_ids[b][t][i]
                    );
                    close(scores.signal.top_k().unwrap().scaled[t * 8 + i] * 5.0, top[b][t][i]);
                }
                close(scores.signal.top_k().unwrap().log_z[t], z5[b][t]);
                if let Some(next) = next {
                    close(scores.next_logprob[t], logits[b][t][next as usize] - z1[b][t]);
                }
            }
        }
    }
}

#[test]
fn a_trained_model_is_loaded_and_states_its_facts() {
    let test = "a_trained_model_is_loaded_and_states_its_facts";
    let Some(dir) = shared("models/gsm8k-teacher", test) else { return };
    let Loaded { mut scorer, text, facts } = source(&dir).load().unwrap();
    assert_eq!((facts.model.as_str(), facts.revision.as_str()), ("gsm8k-teacher", ""));
    assert_eq!(
        (facts.vocab_size, facts.dtype.as_str(), facts.device.as_str()),
        (4096, "f32", "cpu")
    );
    assert!(facts.tokenizer_size <= facts.vocab_size && facts.parameters > 5_000_000);
    let tokens = text.encode(CONVERSATION).unwrap();
    let spelt: String = tokens.iter().map(|&id| text.text_of(id)).collect();
    assert_eq!(spelt, CONVERSATION);
    // Trained on such conversations: perplexity far below that of one in 4096.
    let perplexity = perplexity(&mut *scorer, tokens);
    assert!(perplexity < 40.0, "perplexity {perplexity}");
}

const CONVERSATION: &str = "<|im_start|>user\nA robe takes 2 bolts of blue fiber and half that much \
    white fiber.  How many bolts in total does it take?<|im_end|>\n<|im_start|>assistant\n\
    It takes 2/2=<<2/2=1>>1 bolt of white fiber\n";

fn perplexity(scorer: &mut dyn Scorer, tokens: Vec<u32>) -> f32 {
    let length = tokens.len();
    let job = ScoreJob { tokens, ranges: all_positions(length), k: 5, classes: 4096, ..job(0, 1) };
    let scores = scorer.score(&[&job]).unwrap().remove(0).unwrap();
    let known = &scores.next_logprob[..length - 1];
    (-known.iter().sum::<f32>() / known.len() as f32).exp()
}

#[test]
fn a_trained_model_is_loaded_quantised_and_is_another_model() {
    let test = "a_trained_model_is_loaded_quantised_and_is_another_model";
    let Some(whole) = shared("models/gsm8k-teacher", test) else { return };
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("gsm8k-Q4_K_M.gguf");
    let config = Qwen3Config::from_dir(&whole).unwrap();
    let weights = Weights::load(&whole, &config, DType::F32, &Device::Cpu).unwrap();
    write(&file, &config, &weights, Mixture::Q4KM).unwrap();
    let said = refusal(source(&file));
    assert!(said.contains("config.json and tokenizer.json is missing"), "{said}");
    for name in ["config.json", "tokenizer.json"] {
        std::fs::write(dir.path().join(name), std::fs::read(whole.join(name)).unwrap()).unwrap();
    }
    let Loaded { mut scorer, text, facts } = source(&file).load().unwrap();
    assert_eq!(facts.model, "gsm8k-Q4_K_M.gguf");
    let from_dir = source(dir.path()).load().unwrap().facts;
    assert_eq!(from_dir.model_fingerprint, facts.model_fingerprint);
    let unquantised = source(&whole).load().unwrap();
    assert_ne!(unquantised.facts.model_fingerprint, facts.model_fingerprint);
    assert_eq!(unquantised.facts.tokenizer_fingerprint, facts.tokenizer_fingerprint);
    let tokens = text.encode(CONVERSATION).unwrap();
    let mut exact = unquantised.scorer;
    let (found, wanted) =
        (perplexity(&mut *scorer, tokens.clone()), perplexity(&mut *exact, tokens));
    // Over hundreds of rows it is 0.5 % (docs/benchmarks.md); this is one of 60 tokens.
    assert!((found / wanted).ln().abs() < 0.1 && found != wanted, "{found} {wanted}");
}
