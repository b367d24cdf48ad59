//! What a teacher says of positions, as steps of a program: the output layer's logits exist for a chunk of positions,
//! all classes of each, and are read twice.

use distill::signal::{Draws, Entries, TopK};
use kernels::draws::{Drawing, draw};
use kernels::executor::Outputs;
use kernels::program::{Kind, View};
use kernels::topk::{
    Entry, Logits, MOST_CLASSES, MOST_K, NOBODY, Named, Said as Sought, first_broken, named, top_k,
};

use super::network::{Making, Network};
use crate::language_model::{Asked, NotFinite, Said};
use crate::ops::draws::{self, DrawnScores, WantedDraws};
use crate::ops::topk::{self, HeadScores, Wanted};

/// Memory for the logits of a chunk, in bytes, about.
const LOGITS_BYTES: usize = 1 << 30;
/// Positions of a chunk: a multiple of it where there are so many, as products like it.
const POSITIONS: usize = 128;

/// Where the answers to one question will lie.
pub(super) enum Answers<'a> {
    Listed(Wanted<'a>, Vec<Chunk>),
    Drawn(WantedDraws<'a>, Vec<Chunk>),
    States(View),
}

/// What is put out of a chunk of positions.
pub(super) struct Chunk {
    rows: usize,
    /// `[rows, k]`; none of named ones, which are known.
    ids: Option<View>,
    said: Sought<View>,
    /// `[rows, draws]`
    drawn: Option<View>,
}

/// Positions of a chunk of rows of so many logits, all of them in chunks of nearly equal size.
pub(super) fn chunks(
    positions: usize,
    width: usize,
    bytes: usize,
) -> impl Iterator<Item = std::ops::Range<usize>> {
    let fit = (bytes / (width * size_of::<f32>())).max(1);
    let most = if fit > POSITIONS { fit / POSITIONS * POSITIONS } else { fit };
    let count = positions.div_ceil(most);
    let size = positions.div_ceil(count.max(1)).next_multiple_of(POSITIONS.min(most)).max(1);
    (0..positions).step_by(size).map(move |first| first..positions.min(first + size))
}

/// Logits of a row as they lie: four are read together.
pub(super) fn logits_width(classes: usize) -> usize {
    classes.next_multiple_of(4)
}

/// Adds what it takes to answer about positions with these hidden states `[R, D]`.
pub(super) fn seek<'a>(
    making: &mut Making,
    network: &Network,
    hidden: View,
    asked: Asked<'a>,
) -> candle_core::Result<Answers<'a>> {
    let rows = hidden.len / network.config.hidden_size;
    match asked {
        Asked::Listed(wanted) => {
            topk::check_wanted(&wanted, rows)?;
            check(wanted.classes, wanted.k)?;
            let chunks = list(making, network, hidden, &wanted);
            Ok(Answers::Listed(wanted, chunks))
        }
        Asked::Drawn(wanted) => {
            draws::check_wanted(&wanted, rows)?;
            check(wanted.classes, wanted.k)?;
            let chunks = draw_from(making, network, hidden, &wanted);
            Ok(Answers::Drawn(wanted, chunks))
        }
        Asked::States => {
            let output = making.program.output(hidden.kind, hidden.len);
            making.program.copy(hidden, output);
            Ok(Answers::States(output))
        }
    }
}

/// What the kernels cannot do.
fn check(classes: usize, k: usize) -> candle_core::Result<()> {
    if k > MOST_K as usize {
        candle_core::bail!("k is {k}, a card lists at most {MOST_K} entries a position");
    }
    if classes > MOST_CLASSES as usize {
        candle_core::bail!("{classes} classes, a card takes at most {MOST_CLASSES}");
    }
    Ok(())
}

/// The logits of some positions, as a product writes them.
fn logits(
    making: &mut Making,
    network: &Network,
    hidden: View,
    [rows, classes]: [usize; 2],
    temperature: f64,
) -> Logits<View> {
    let (d, width) = (network.config.hidden_size, logits_width(classes));
    let logits = making.program.passing("logits", Kind::F32, rows * width);
    let head = &network.views.head;
    head.logits(&mut making.program, (hidden, d), 0..classes, (logits, width));
    let [rows, classes, width] = [rows, classes, width].map(|size| size as u32);
    Logits { logits, rows, classes, width, temperature }
}

fn next_or_nobody(next: &[Option<u32>]) -> Vec<u32> {
    next.iter().map(|next| next.unwrap_or(NOBODY)).collect()
}

fn output(making: &mut Making, rows: usize, k: usize) -> Sought<View> {
    let program = &mut making.program;
    Sought {
        entries: program.output(Kind::F32, rows * k),
        sums: program.output(Kind::F32, 4 * rows),
        broken: program.output(Kind::U32, 2 * rows),
    }
}

fn list(making: &mut Making, network: &Network, hidden: View, wanted: &Wanted<'_>) -> Vec<Chunk> {
    let Wanted { classes, next, temperature, k, entries } = *wanted;
    let d = network.config.hidden_size;
    let mut all = Vec::new();
    for these in chunks(next.len(), logits_width(classes), LOGITS_BYTES) {
        let rows = these.len();
        making.program.part("output layer");
        let states = hidden.part(these.start * d..these.end * d);
        let of = logits(making, network, states, [rows, classes], temperature);
        let following = making.send(&next_or_nobody(&next[these.clone()]));
        let said = output(making, rows, k);
        let ids = match entries {
            Entries::Named(ids) => {
                let each_row = ids.len() != k;
                let ids = if each_row { &ids[these.start * k..these.end * k] } else { &ids[..] };
                let ids = making.send(ids);
                let naming = Named { ids, k: k as u32, each_row };
                making.program.call(named(of, following, naming, said));
                None
            }
            Entries::Top | Entries::Drawn { .. } | Entries::Hidden(_) => {
                let ids = making.program.output(Kind::U32, rows * k);
                making.program.call(top_k(of, following, ids, said, k as u32, Entry::Scaled));
                Some(ids)
            }
        };
        all.push(Chunk { rows, ids, said, drawn: None });
    }
    all
}

fn draw_from(
    making: &mut Making,
    network: &Network,
    hidden: View,
    wanted: &WantedDraws<'_>,
) -> Vec<Chunk> {
    let WantedDraws { classes, next, temperature, draws, k, keys } = *wanted;
    let d = network.config.hidden_size;
    let mut all = Vec::new();
    for these in chunks(next.len(), logits_width(classes), LOGITS_BYTES) {
        let rows = these.len();
        making.program.part("output layer");
        let states = hidden.part(these.start * d..these.end * d);
        let of = logits(making, network, states, [rows, classes], temperature);
        let following = making.send(&next_or_nobody(&next[these.clone()]));
        let uniforms: Vec<f64> = keys[these].iter().flat_map(|key| key.uniforms(draws)).collect();
        let uniforms = making.send(&uniforms);
        let said = output(making, rows, k);
        let exact = making.program.output(Kind::U32, rows * k);
        making.program.call(match k {
            0 => named(of, following, Named { ids: exact, k: 0, each_row: false }, said),
            _ => top_k(of, following, exact, said, k as u32, Entry::LogP),
        });
        let drawn = making.program.output(Kind::U32, rows * draws as usize);
        let from = Drawing { exact, k: k as u32, broken: said.broken, uniforms, draws };
        making.program.call(draw(of, from, drawn));
        all.push(Chunk { rows, ids: Some(exact), said, drawn: Some(drawn) });
    }
    all
}

impl Answers<'_> {
    /// What was put out, as the processor says it.
    pub(super) fn read(&self, outputs: &Outputs) -> Result<Said, NotFinite> {
        match self {
            Self::States(view) => Ok(Said::States(super::floats(outputs, *view))),
            Self::Listed(wanted, chunks) => {
                let mut scores = HeadScores {
                    signal: TopK::new(wanted.k),
                    next_logprob: Vec::new(),
                    next_logprob_t: Vec::new(),
                };
                for (chunk, first) in chunks.iter().zip(firsts(chunks)) {
                    let sums = chunk.sums(outputs, first)?;
                    let ids = match (chunk.ids, wanted.entries) {
                        (Some(ids), _) => outputs.get::<u32>(ids),
                        (None, Entries::Named(ids)) if ids.len() == wanted.k => {
                            ids.repeat(chunk.rows)
                        }
                        (None, Entries::Named(ids)) => {
                            ids[first * wanted.k..(first + chunk.rows) * wanted.k].to_vec()
                        }
                        (None, Entries::Top | Entries::Drawn { .. } | Entries::Hidden(_)) => {
                            Vec::new()
                        }
                    };
                    let signal = &mut scores.signal;
                    signal.ids.extend(ids);
                    signal.scaled.extend(outputs.get::<f32>(chunk.said.entries));
                    let [log_z, log_rest, next, next_t] = sums;
                    signal.log_z.extend(log_z);
                    signal.log_rest.extend(log_rest);
                    scores.next_logprob.extend(next);
                    scores.next_logprob_t.extend(next_t);
                }
                Ok(Said::Listed(scores))
            }
            Self::Drawn(wanted, chunks) => {
                let (draws, k) = (wanted.draws as usize, wanted.k);
                let mut scores = DrawnScores {
                    signal: Draws::new(wanted.draws, k),
                    next_logprob: Vec::new(),
                    next_logprob_t: Vec::new(),
                };
                for (chunk, first) in chunks.iter().zip(firsts(chunks)) {
                    let [_, log_rest, next, next_t] = chunk.sums(outputs, first)?;
                    let ids = chunk.ids.map_or_else(Vec::new, |ids| outputs.get::<u32>(ids));
                    let log_p = outputs.get::<f32>(chunk.said.entries);
                    let drawn = chunk.drawn.map_or_else(Vec::new, |ids| outputs.get::<u32>(ids));
                    for row in 0..chunk.rows {
                        let at = row * k..(row + 1) * k;
                        let exact = ids[at.clone()].iter().copied().zip(log_p[at].iter().copied());
                        let mut exact: Vec<(u32, f32)> = exact.collect();
                        exact.sort_unstable_by_key(|&(id, _)| id);
                        let drawn = drawn[row * draws..(row + 1) * draws].iter().copied();
                        let log_rest = if k == 0 { 0.0 } else { log_rest[row] };
                        scores.signal.push(exact, log_rest, drawn.filter(|&id| id != NOBODY));
                    }
                    scores.next_logprob.extend(next);
                    scores.next_logprob_t.extend(next_t);
                }
                Ok(Said::Drawn(scores))
            }
        }
    }
}

/// The first row of each chunk among all.
fn firsts(chunks: &[Chunk]) -> impl Iterator<Item = usize> {
    chunks.iter().scan(0, |next, chunk| {
        let first = *next;
        *next += chunk.rows;
        Some(first)
    })
}

impl Chunk {
    /// `log_z`, `log_rest` and the log-probabilities of the following tokens, `[rows]` each; refused where a logit is not
    /// finite, as the processor refuses it.
    fn sums(&self, outputs: &Outputs, first: usize) -> Result<[Vec<f32>; 4], NotFinite> {
        if let Some((row, id, found)) = first_broken(&outputs.get::<u32>(self.said.broken)) {
            let row = first + row;
            return Err(NotFinite(topk::not_finite_text(row, id as usize, found)));
        }
        let sums = outputs.get::<f32>(self.said.sums);
        Ok([0, 1, 2, 3].map(|at| sums[at * self.rows..(at + 1) * self.rows].to_vec()))
    }
}
