//! Figures of a card: its matrix rate and copy bandwidth, and what the engine makes of them at the shapes that matter.

mod whole;

use std::time::Instant;

use distill::batch::{Sequence, TokenBatch};
use distill::signal::TopK;
use half::bf16;
use kernels::Activations;
use kernels::adamw::{Scalars, adamw};
use kernels::attention::{Back, Reads, Tiles, attention, attention_backward};
use kernels::executor::Executor;
use kernels::heads::Heads;
use kernels::program::{Kind, Matrix, Places, Product, Step, View};

use super::failed;
use super::loss::{self, Asked as LossAsked, LOGITS_BYTES};
use super::network::{Making, Network, views, weights};
use super::signals::Teacher;
use crate::config::Qwen3Config;
use crate::ops::Precision;
use crate::ops::head::{Divergence, LossSettings, Tail};
use crate::parameters::ParameterIndex;
use crate::qwen3::ModelError;
pub use whole::{student, teacher};

/// One figure.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// What was measured.
    pub name: &'static str,
    /// Seconds of one time, the median.
    pub seconds: f64,
    /// Floating-point operations of one time that the mathematics asks for; 0 where bytes count.
    pub operations: f64,
    /// Bytes read and written of one time, where they count.
    pub bytes: f64,
    /// Memory beside what is read and written, or at its peak, in bytes, where it is known.
    pub memory: u64,
}

/// Sizes of what is measured: those that matter, or ones that an emulation can carry.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Rows and columns of the matrices whose product gives the rate.
    pub matrix: usize,
    /// Parameters of AdamW's step, and a third of the elements that are copied.
    pub parameters: usize,
    /// Rows of a batch, and tokens of each.
    pub rows: [usize; 2],
    /// Positions of the output layer.
    pub positions: usize,
    /// Times each is measured.
    pub times: usize,
}

/// What is measured on an H200.
pub const REAL: Sizes =
    Sizes { matrix: 8192, parameters: 596_049_920, rows: [16, 1024], positions: 8192, times: 10 };

/// What an emulation carries.
pub const TINY: Sizes =
    Sizes { matrix: 16, parameters: 1000, rows: [2, 9], positions: 6, times: 1 };

/// Qwen3-0.6B and Qwen3-4B: hidden size, intermediate size, heads of queries, layers.
pub const QWEN3_0_6B: [usize; 4] = [1024, 3072, 16, 28];
/// As above.
pub const QWEN3_4B: [usize; 4] = [2560, 9728, 32, 36];

/// A model of one of these shapes, as its config.json has it.
///
/// # Panics
/// When a shape is none of a model.
pub fn shape([hidden, inner, heads, layers]: [usize; 4]) -> Qwen3Config {
    let json = serde_json::json!({
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_act": "silu",
        "attention_bias": false, "head_dim": 128, "hidden_size": hidden,
        "intermediate_size": inner, "max_position_embeddings": 40960,
        "num_attention_heads": heads, "num_hidden_layers": layers, "num_key_value_heads": 8,
        "rms_norm_eps": 1e-6, "rope_theta": 1_000_000.0, "tie_word_embeddings": true,
        "vocab_size": 151_936, "initializer_range": 0.02,
    });
    Qwen3Config::from_json(&json.to_string()).expect("a shape of Qwen3")
}

/// Entries a position, and the temperature they are made at.
const K: usize = 64;
const TEMPERATURE: f64 = 5.0;

/// Numbers: what is measured does not depend on them.
fn numbers(len: usize, size: f32) -> Vec<bf16> {
    let one = |at: usize| {
        let bits = (at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
        bf16::from_f32((bits as f32 / 8_388_608.0 - 1.0) * size)
    };
    (0..len).map(one).collect()
}

/// Seconds of one time of a program, the median of several; the first times, in which it is recorded and the card wakes
/// up, do not count.
fn timed<X: Executor>(on: &mut X, making: &Making, times: usize) -> Result<f64, ModelError> {
    let mut once = || -> Result<f64, ModelError> {
        let begin = Instant::now();
        on.run(&making.program, &making.inputs).map_err(failed::<X>)?;
        Ok(begin.elapsed().as_secs_f64())
    };
    for _ in 0..6.min(times) {
        once()?;
    }
    median((0..times).map(|_| once()).collect::<Result<_, _>>()?)
}

fn median(mut seconds: Vec<f64>) -> Result<f64, ModelError> {
    seconds.sort_by(f64::total_cmp);
    Ok(seconds[seconds.len() / 2])
}

/// The program of these steps so many times over: what starting and ending it takes is shared.
fn repeated(making: &mut Making, times: usize) {
    let steps = making.program.steps.clone();
    for _ in 1..times {
        making.program.steps.extend(steps.iter().cloned());
    }
}

/// Memory with [`numbers`] in it, which repeat: the host holds few of many.
fn kept<X: Executor>(on: &mut X, len: usize, size: f32) -> Result<View, ModelError> {
    const AT_ONCE: usize = 1 << 24;
    let view = on.keep("numbers", Kind::Bf16, len).map_err(failed::<X>)?;
    let block = numbers(len.min(AT_ONCE), size);
    for start in (0..len).step_by(AT_ONCE) {
        let part = view.part(start..len.min(start + AT_ONCE));
        on.write(part, &block[..part.len]).map_err(failed::<X>)?;
    }
    Ok(view)
}

/// The card's rate of bfloat16 products with float32 sums.
///
/// # Errors
/// When the device fails, as all of these.
pub fn rate<X: Executor>(on: &mut X, sizes: Sizes) -> Result<Figure, ModelError> {
    let n = sizes.matrix;
    let mut making = Making::default();
    let [a, b] = [kept(on, n * n, 1.0)?, kept(on, n * n, 1.0)?];
    let into = making.program.passing("product", Kind::Bf16, n * n);
    making.program.product(Product {
        a: Matrix::of(a, [n, n]),
        b: Matrix::of(b, [n, n]).transpose(),
        into: Matrix::of(into, [n, n]),
        plus: None,
        scale: 1.0,
    });
    repeated(&mut making, sizes.times);
    let seconds = timed(on, &making, sizes.times)? / sizes.times as f64;
    let operations = 2.0 * (n as f64).powi(3);
    Ok(Figure { name: "matrix rate", seconds, operations, bytes: 0.0, memory: 0 })
}

/// The card's copy bandwidth.
///
/// # Errors
/// As [`rate`].
pub fn copy<X: Executor>(on: &mut X, sizes: Sizes) -> Result<Figure, ModelError> {
    let mut making = Making::default();
    let [from, to] = [0, 1].map(|_| making.program.passing("copied", Kind::F32, sizes.parameters));
    making.program.zero(from);
    making.program.steps.clear();
    making.program.copy(from, to);
    repeated(&mut making, sizes.times);
    let seconds = timed(on, &making, sizes.times)? / sizes.times as f64;
    let bytes = 2.0 * from.bytes() as f64;
    Ok(Figure { name: "copy", seconds, operations: 0.0, bytes, memory: 0 })
}

/// AdamW's step over all parameters, with the weights that products read.
///
/// # Errors
/// As [`rate`].
pub fn optimiser<X: Executor>(on: &mut X, sizes: Sizes) -> Result<Figure, ModelError> {
    let count = sizes.parameters;
    let mut making = Making::default();
    let program = &mut making.program;
    let [p, m, v, g] = [0; 4].map(|_| program.passing("state", Kind::F32, count));
    let scale = program.passing("scale", Kind::F32, 1);
    let rounded = program.passing("rounded", Kind::Bf16, count);
    let scalars = Scalars {
        decay: 1.0,
        one_minus_beta1: 0.1,
        beta2: 0.999,
        one_minus_beta2: 0.001,
        root_correction2: 1.0,
        epsilon: 1e-8,
        step_size: 0.0,
    };
    // Numbers to begin with, once.
    [p, m, v, g, scale].into_iter().for_each(|view| program.zero(view));
    let step = adamw([p, m, v, g, scale], Some(rounded), count as u32, &scalars);
    for _ in 0..sizes.times {
        program.call(step.clone());
    }
    let all = timed(on, &making, sizes.times)?;
    making.program.steps.truncate(6);
    let less = timed(on, &making, sizes.times)?;
    let seconds = (all - less) / (sizes.times - 1).max(1) as f64;
    // p, m, v read and written, g read, the rounded ones written.
    let bytes = (7 * 4 + 2) as f64 * count as f64;
    Ok(Figure { name: "AdamW", seconds, operations: 0.0, bytes, memory: 0 })
}

/// Attention forward and backward, 16 query and 8 key heads of 128.
///
/// # Errors
/// As [`rate`].
pub fn attention_both<X: Executor>(on: &mut X, sizes: Sizes) -> Result<Figure, ModelError> {
    let heads = Heads { queries: 16, keys: 8, head_dim: 128 };
    let ([rows, length], activations) = (sizes.rows, Activations::Bf16);
    let (tokens, h, e) = (rows * length, heads.queries as usize, heads.head_dim as usize);
    let ready = kept(on, tokens * heads.normed() as usize * e, 1.0)?;
    let raw = kept(on, tokens * heads.width() as usize, 1.0)?;
    let d_out = kept(on, tokens * h * e, 1.0)?;
    let mut making = Making::default();
    let ends: Vec<u32> = (1..=rows).map(|row| (row * length) as u32).collect();
    let tiles = Tiles::of(&ends, heads, activations);
    let reads = Reads { ready, raw, query_tiles: making.send(&tiles.queries) };
    let key_tiles = making.send(&tiles.keys);
    let program = &mut making.program;
    let out = program.passing("out", Kind::Bf16, d_out.len);
    let [lse, delta] = [0; 2].map(|_| program.passing("sums", Kind::F32, tokens * h));
    let d_ready = program.passing("gradients", Kind::Bf16, ready.len);
    let d_raw = program.passing("gradients", Kind::Bf16, raw.len);
    program.call(attention(reads, [out, lse], heads, tiles.counts(), activations));
    let back = Back { d_out, out, lse, delta, d_ready, d_raw, key_tiles };
    let counts = tiles.counts();
    let (tokens, room) = (tokens as u32, on.block_memory());
    program.calls(attention_backward(reads, back, heads, tokens, counts, activations, room));
    let memory = Places::of(program).bytes as u64;
    repeated(&mut making, sizes.times);
    let seconds = timed(on, &making, sizes.times)? / sizes.times as f64;
    // Two products forward and five backward, half of each square.
    let operations = 7.0 * (rows * length * length) as f64 * (h * e) as f64;
    Ok(Figure { name: "attention, both ways", seconds, operations, bytes: 0.0, memory })
}

/// The settings that matter.
fn settings() -> LossSettings {
    LossSettings {
        alpha: 0.5,
        temperature: TEMPERATURE,
        divergence: Divergence::ForwardKl,
        tail: Tail::Bucket,
        precision: Precision::Bf16,
    }
}

/// A top-k signal that repeats: ids all different in a row.
fn signal(rows: usize, classes: usize) -> TopK {
    let k = K.min(classes / 2).max(1);
    let mut signal = TopK::new(k);
    for row in 0..rows {
        signal.ids.extend((0..k).map(|at| ((row * 31 + at * (classes / k)) % classes) as u32));
        signal.scaled.extend((0..k).map(|at| -0.01 * at as f32));
        signal.log_z.push((2.0 * k as f32).ln());
        signal.log_rest.push(-0.8);
    }
    signal
}

/// The output layer with its loss and both gradients, and its three products alone, chunked in the same way.
///
/// # Errors
/// As [`rate`].
pub fn output_layer<X: Executor>(
    on: &mut X,
    config: &Qwen3Config,
    sizes: Sizes,
) -> Result<[Figure; 2], ModelError> {
    let (d, classes, rows) = (config.hidden_size, config.vocab_size, sizes.positions);
    let index = ParameterIndex::new(config);
    let flat = kept(on, index.total(), 0.02)?;
    let weights = weights(flat, &index, config.num_hidden_layers)?;
    let network = Network::new(on, config.clone(), weights, Activations::Bf16)?;
    let hidden = kept(on, rows * d, 1.0)?;
    let gradients = on.keep("gradients", Kind::F32, index.total()).map_err(failed::<X>)?;
    let dw = views(gradients, &index, config.num_hidden_layers)?.head;
    let (targets, said) =
        ((0..rows as u32).map(|at| at % 7).collect::<Vec<_>>(), signal(rows, classes));
    let settings = settings();
    let asked = LossAsked {
        classes,
        targets: &targets,
        teacher: Some(Teacher::TopK(&said)),
        settings: &settings,
        scale: 1.0 / rows as f64,
        bytes: LOGITS_BYTES,
    };
    let mut making = Making::default();
    let losses = loss::losses(&mut making, &network, hidden, &asked, Some(dw));
    let gradient = losses.d_hidden.map_or(0, |view| view.bytes());
    let memory = (Places::of(&making.program).bytes - gradient) as u64;
    let seconds = timed(on, &making, sizes.times)?;
    let operations = 6.0 * (rows * d) as f64 * classes as f64;
    let whole = Figure { name: "output layer and loss", seconds, operations, bytes: 0.0, memory };
    making.program.steps.retain(|step| matches!(step, Step::Product(_)));
    let seconds = timed(on, &making, sizes.times)?;
    let alone = Figure { name: "its products alone", seconds, operations, bytes: 0.0, memory: 0 };
    Ok([whole, alone])
}

/// A batch of rows of tokens, all scored but the last of each.
fn batch(sizes: Sizes, classes: usize) -> TokenBatch {
    let [rows, length] = sizes.rows;
    let row = |row: usize| {
        let ids = (0..length).map(|at| ((row * 7919 + at * 104_729) % classes) as u32).collect();
        Sequence::all_scored(ids)
    };
    let rows: Vec<Sequence> = (0..rows).filter_map(|at| row(at).ok()).collect();
    TokenBatch::pack(&rows)
}
