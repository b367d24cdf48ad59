//! `engine_bench step|score|loss SHAPE ROWSxTOKENS [f32|bf16] [K] [STEPS] [none|blocks|gradients]
//! [forward-kl|reverse-kl|jsd|mixture]`: the engine alone, on random weights and tokens: seconds of each
//! training step, of scoring a batch, or of the output layer with its loss and gradients; the largest
//! memory, and how much of it came above the weights (of `loss`: and above their gradient and the hidden
//! states). With `full` for K, `step` and `loss` have a teacher that says all, whose hidden states are as wide
//! as the student's, or with `full:2560` that wide and with an output matrix in bfloat16; `step` with
//! `coded:2560` has to decode them first. The beta of a divergence is 0.5. One JSON line.
//! `cargo xtask bench engine` runs it beside its peer in PyTorch.
//!
//! `engine_bench product NxIxO` multiplies `[N, I]` by the transpose of `[O, I]`: GFLOP/s in float32 and
//! in bfloat16 from either type of weights, and candle's in float32, in turn. One JSON line.
//!
//! `engine_bench checkpoint SHAPE DIR` writes such a model in bfloat16, without a tokenizer.
//!
//! `engine_bench gguf DIR F16|Q8_0|Q6_K|Q4_K|Q4_K_M FILE` writes the model of a directory as a GGUF file and prints the
//! names of matrices that stay in bfloat16, because their rows are no whole blocks. `cargo xtask bench quantised` measures
//! what that costs.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command's output")]

mod gguf;
mod said;

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use distill::batch::{Sequence, TokenBatch};
use distill::signal::Entries;
use model::config::Qwen3Config;
use model::ops::Precision;
use model::ops::embed::gather_rows;
use model::ops::head::{Divergence, LossSettings, Tail, head_loss};
use model::ops::matmul::linear;
use model::ops::topk::{Wanted, score_head};
use model::qwen3::Qwen3;
use model::recompute::Recompute;
use model::save::save_model;
use model::student::{Student, Training};
use model::weights::Weights;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use said::{Asking, Said};

/// Temperature of the signals.
const TEMPERATURE: f64 = 5.0;

struct Asked {
    config: Qwen3Config,
    rows: usize,
    tokens: usize,
    precision: Precision,
    signal: Asking,
    steps: usize,
    recompute: Recompute,
    divergence: Divergence,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments.iter().map(String::as_str).collect::<Vec<_>>()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[&str]) -> Result<(), Box<dyn Error>> {
    let Some((&what, rest)) = arguments.split_first() else {
        return Err("step or score, then SHAPE ROWSxTOKENS".into());
    };
    if what == "checkpoint" {
        let [name, dir] = rest else { return Err("checkpoint SHAPE DIR".into()) };
        return write_checkpoint(shape(name)?, Path::new(dir));
    }
    if what == "gguf" {
        let [dir, mixture, file] = rest else { return Err("gguf DIR TYPE FILE".into()) };
        let left = gguf::convert(Path::new(dir), mixture, Path::new(file))?;
        left.iter().for_each(|name| println!("{name}"));
        return Ok(());
    }
    if what == "product" {
        return products(rest.first().copied().unwrap_or("512x1024x6144"));
    }
    let asked = asked(rest)?;
    let (seconds, before) = match what {
        "step" => (steps(&asked)?, 0),
        "score" => scores(&asked)?,
        "loss" => losses(&asked)?,
        other => {
            return Err(format!(
                "{other} is none of step, score, loss, product, checkpoint and gguf"
            )
            .into());
        }
    };
    let seconds: Vec<String> = seconds.iter().map(|s| format!("{s:.4}")).collect();
    let peak = peak_mib();
    println!(
        "{{\"seconds\": [{}], \"peak_mib\": {peak}, \"above_mib\": {}}}",
        seconds.join(", "),
        peak - before
    );
    Ok(())
}

fn asked(rest: &[&str]) -> Result<Asked, Box<dyn Error>> {
    let at = |index: usize, default| rest.get(index).copied().unwrap_or(default);
    let (rows, tokens) = at(1, "4x256").split_once('x').ok_or("ROWSxTOKENS, such as 4x256")?;
    Ok(Asked {
        config: shape(at(0, "small"))?,
        rows: rows.parse()?,
        tokens: tokens.parse()?,
        precision: match at(2, "f32") {
            "f32" => Precision::F32,
            "bf16" => Precision::Bf16,
            other => return Err(format!("{other} is neither f32 nor bf16").into()),
        },
        signal: Asking::of(at(3, "64"))?,
        steps: at(4, "5").parse()?,
        recompute: at(5, "none").parse()?,
        divergence: divergence(at(6, "forward-kl"))?,
    })
}

fn divergence(name: &str) -> Result<Divergence, String> {
    let beta = 0.5;
    match name {
        "forward-kl" => Ok(Divergence::ForwardKl),
        "reverse-kl" => Ok(Divergence::ReverseKl),
        "jsd" => Ok(Divergence::Jsd { beta }),
        "mixture" => Ok(Divergence::Mixture { beta }),
        other => Err(format!("no divergence {other}: forward-kl, reverse-kl, jsd, mixture")),
    }
}

/// `small`, or the shapes of a published model; `NAME:V` has V classes instead of its own.
fn shape(name: &str) -> Result<Qwen3Config, Box<dyn Error>> {
    let (name, classes) = name.split_once(':').map_or((name, None), |(n, v)| (n, Some(v)));
    let [hidden, inter, layers, heads, kv, width, vocab] = match name {
        "small" => [256, 768, 6, 8, 4, 32, 4096],
        "qwen3-0.6b" => [1024, 3072, 28, 16, 8, 128, 151_936],
        "qwen3-4b" => [2560, 9728, 36, 32, 8, 128, 151_936],
        other => return Err(format!("no shape {other}: small, qwen3-0.6b, qwen3-4b").into()),
    };
    let vocab = classes.map_or(Ok(vocab), str::parse)?;
    let json = format!(
        r#"{{"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": {hidden},
            "intermediate_size": {inter}, "num_hidden_layers": {layers},
            "num_attention_heads": {heads}, "num_key_value_heads": {kv}, "head_dim": {width},
            "vocab_size": {vocab}, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0,
            "max_position_embeddings": 40960, "tie_word_embeddings": true,
            "attention_bias": false, "hidden_act": "silu", "initializer_range": 0.02}}"#
    );
    Ok(Qwen3Config::from_json(&json)?)
}

fn sequences(asked: &Asked, random: &mut ChaCha8Rng) -> Result<Vec<Sequence>, Box<dyn Error>> {
    let classes = asked.config.vocab_size as u32;
    let mut row = || {
        let ids = (0..asked.tokens).map(|_| random.random_range(0..classes)).collect();
        Sequence::all_scored(ids)
    };
    Ok((0..asked.rows).map(|_| row()).collect::<Result<_, _>>()?)
}

fn loss_settings(asked: &Asked) -> LossSettings {
    LossSettings {
        alpha: 0.7,
        temperature: TEMPERATURE,
        divergence: asked.divergence,
        tail: Tail::Bucket,
        precision: asked.precision,
    }
}

fn steps(asked: &Asked) -> Result<Vec<f64>, Box<dyn Error>> {
    model::malloc::tune();
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let (config, classes) = (asked.config.clone(), asked.config.vocab_size);
    let (precision, recompute) = (asked.precision, asked.recompute);
    let training = Training { precision, recompute, ..Training::default() };
    let mut student = Student::random(config, 1, training, &Device::Cpu)?;
    let loss = loss_settings(asked);
    let rows = sequences(asked, &mut random)?;
    let batch = TokenBatch::pack(&rows);
    let positions = batch.scored().len();
    let said = Said::new(asked, positions, &mut random)?;
    (0..asked.steps)
        .map(|_| {
            let begin = Instant::now();
            let scale = 1.0 / positions as f64;
            said.with(positions, |teaching| {
                Ok(student.backward(&batch, classes, Some(teaching), &loss, scale)?)
            })?;
            student.step(5e-5, Some(1.0))?;
            Ok(begin.elapsed().as_secs_f64())
        })
        .collect()
}

fn scores(asked: &Asked) -> Result<(Vec<f64>, u64), Box<dyn Error>> {
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let classes = asked.config.vocab_size;
    let dtype = if asked.precision == Precision::F32 { DType::F32 } else { DType::BF16 };
    let drawn = Weights::random(&asked.config, 1, &Device::Cpu)?;
    let weights = Weights::from_flat(drawn.flat().to_dtype(dtype)?, drawn.index().clone())?;
    drop(drawn);
    let network = Qwen3::new(asked.config.clone(), weights, asked.precision)?;
    let rows = sequences(asked, &mut random)?;
    let batch = TokenBatch::pack(&rows);
    let next: Vec<Option<u32>> = batch.targets().iter().map(|&id| Some(id)).collect();
    // Only now: the float32 weights that were drawn have gone back to the system.
    model::malloc::tune();
    let before = forget_peak()?;
    let Asking::TopK(k) = asked.signal else { return Err("score wants a number of tokens".into()) };
    let score = |_| {
        let begin = Instant::now();
        let hidden = gather_rows(&network.forward_hidden(&batch)?, batch.scored())?;
        let (head, p) = (network.head(), asked.precision);
        let (temperature, entries) = (TEMPERATURE, &Entries::Top);
        score_head(&hidden, head, Wanted { classes, next: &next, temperature, k, entries }, p)?;
        Ok(begin.elapsed().as_secs_f64())
    };
    let seconds: Result<_, Box<dyn Error>> = (0..asked.steps).map(score).collect();
    Ok((seconds?, before))
}

fn losses(asked: &Asked) -> Result<(Vec<f64>, u64), Box<dyn Error>> {
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let (classes, width) = (asked.config.vocab_size, asked.config.hidden_size);
    let positions = asked.rows * asked.tokens;
    let hidden = Tensor::randn(0.0_f32, 1.0, (positions, width), &Device::Cpu)?;
    let w = Tensor::randn(0.0_f32, 0.02, (classes, width), &Device::Cpu)?;
    // Written once, so that its pages are there before anything is counted.
    let grad = (&w * 0.0)?;
    let targets: Vec<u32> =
        (0..positions).map(|_| random.random_range(0..classes as u32)).collect();
    let said = Said::new(asked, positions, &mut random)?;
    let (loss, scale) = (loss_settings(asked), 1.0 / positions as f64);
    model::malloc::tune();
    let before = forget_peak()?;
    let step = |_| {
        let begin = Instant::now();
        said.with(positions, |said| {
            Ok(head_loss(&hidden, &w, classes, &targets, Some(said), &loss, scale, Some(&grad))?)
        })?;
        Ok(begin.elapsed().as_secs_f64())
    };
    let seconds: Result<_, Box<dyn Error>> = (0..asked.steps).map(step).collect();
    Ok((seconds?, before))
}

fn products(shape: &str) -> Result<(), Box<dyn Error>> {
    const ROUNDS: usize = 15;
    model::malloc::tune();
    let sides = shape.split('x').map(str::parse).collect::<Result<Vec<usize>, _>>()?;
    let [n, i, o] = sides[..] else { return Err("NxIxO, such as 512x1024x6144".into()) };
    let x = Tensor::randn(0.0_f32, 1.0, (n, i), &Device::Cpu)?;
    let w = Tensor::randn(0.0_f32, 0.02, (o, i), &Device::Cpu)?;
    let rounded = w.to_dtype(DType::BF16)?;
    type Product<'a> = Box<dyn Fn() -> candle_core::Result<Tensor> + 'a>;
    let ways: [(&str, Product<'_>); 4] = [
        ("f32", Box::new(|| linear(&x, &w, Precision::F32))),
        ("f32_candle", Box::new(|| x.matmul(&w.t()?))),
        ("bf16", Box::new(|| linear(&x, &w, Precision::Bf16))),
        ("bf16_weights_bf16", Box::new(|| linear(&x, &rounded, Precision::Bf16))),
    ];
    let mut seconds = [const { Vec::new() }; 4];
    for _ in 0..ROUNDS {
        for ((_, product), seconds) in ways.iter().zip(&mut seconds) {
            let begin = Instant::now();
            product()?;
            seconds.push(begin.elapsed().as_secs_f64());
        }
    }
    let rate = |((name, _), seconds): (&(&str, Product<'_>), &mut Vec<f64>)| {
        seconds.sort_by(f64::total_cmp);
        let rate = 2e-9 * (n * i * o) as f64 / seconds[ROUNDS / 2];
        format!("\"{name}\": {rate:.0}")
    };
    let rates: Vec<String> = ways.iter().zip(&mut seconds).map(rate).collect();
    println!("{{{}}}", rates.join(", "));
    Ok(())
}

fn write_checkpoint(config: Qwen3Config, dir: &Path) -> Result<(), Box<dyn Error>> {
    let weights = Weights::random(&config, 1, &Device::Cpu)?;
    std::fs::create_dir_all(dir)?;
    Ok(save_model(dir, &config, &weights, DType::BF16)?)
}

/// Resident memory now, MiB; the peak is counted from here.
fn forget_peak() -> Result<u64, Box<dyn Error>> {
    std::fs::write("/proc/self/clear_refs", "5")?;
    Ok(peak_mib())
}

/// The largest resident memory of this process since it was last forgotten, MiB.
fn peak_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.unwrap_or_default() / 1024
}
