//! What a teacher says of positions, as steps of a program: the output layer's logits exist for a chunk of positions,
//! all classes of each, and are read twice.

use std::ops::Range;

use distill::signal::{Draws, Entries, TopK};
use kernels::draws::{Drawing, draw};
use kernels::executor::Outputs;
use kernels::program::{Kind, View};
use kernels::topk::{
    Entry, Logits, MOST_CLASSES, MOST_K, NOBODY, Named, Said as Sought, first_broken, named, top_k,
};

use super::logits::{chunks, logits_width};
use super::network::{Making, Network};
use crate::language_model::{Asked, NotFinite, Said};
use crate::ops::draws::{self, DrawnScores, WantedDraws};
use crate::ops::topk::{self, HeadScores, Wanted};

/// Memory for the logits of a chunk, in bytes, about.
const LOGITS_BYTES: usize = 1 << 30;

/// Where the answers to one question will lie.
pub(super) enum Answers {
    Chunks(Vec<Chunk>),
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

/// Adds what it takes to answer about positions with these hidden states `[R, D]`.
pub(super) fn seek(
    making: &mut Making,
    network: &Network,
    hidden: View,
    asked: Asked<'_>,
) -> candle_core::Result<Answers> {
    let rows = hidden.len / network.config.hidden_size;
    match asked {
        Asked::Listed(wanted) => {
            topk::check_wanted(&wanted, rows)?;
            check(wanted.classes, wanted.k)?;
            Ok(Answers::Chunks(list(making, network, hidden, &wanted)))
        }
        Asked::Drawn(wanted) => {
            draws::check_wanted(&wanted, rows)?;
            check(wanted.classes, wanted.k)?;
            Ok(Answers::Chunks(draw_from(making, network, hidden, &wanted)))
        }
        Asked::States => {
            let output = making.program.output(hidden.kind, hidden.len);
            making.program.copy(hidden, output);
            Ok(Answers::States(output))
        }
    }
}

/// What the kernels cannot do.
pub(super) fn check(classes: usize, k: usize) -> candle_core::Result<()> {
    if k > MOST_K as usize {
        candle_core::bail!(
            "k is {k}, a card lists at most {MOST_K} entries a position (of candidates twice --top-k): ask for fewer (--top-k, \
             of a teacher --max-top-k), or compute with --device cpu"
        );
    }
    if classes > MOST_CLASSES as usize {
        candle_core::bail!(
            "{classes} classes, a card takes at most {MOST_CLASSES}: compute on the processor"
        );
    }
    Ok(())
}

/// What is asked of the output layer, whoever is listed or drawn.
#[derive(Clone, Copy)]
struct Layer<'a> {
    hidden: View,
    classes: usize,
    next: &'a [Option<u32>],
    temperature: f64,
    k: usize,
}

/// A chunk of positions whose logits a product has written.
struct Written {
    /// Which positions they are.
    these: Range<usize>,
    logits: Logits<View>,
    /// The tokens that follow, or nobody.
    following: View,
    said: Sought<View>,
}

impl Layer<'_> {
    /// The logits of all positions, chunk by chunk, and what `listen` puts out of each.
    fn sweep(
        self,
        making: &mut Making,
        network: &Network,
        mut listen: impl FnMut(&mut Making, Written) -> Chunk,
    ) -> Vec<Chunk> {
        let Self { hidden, classes, next, temperature, k } = self;
        let (d, width) = (network.config.hidden_size, logits_width(classes));
        let mut all = Vec::new();
        for these in chunks(next.len(), width, LOGITS_BYTES) {
            let rows = these.len();
            let following = next[these.clone()].iter().map(|next| next.unwrap_or(NOBODY));
            let following = making.send(&following.collect::<Vec<u32>>());
            let program = &mut making.program;
            program.part("output layer");
            let states = hidden.part(these.start * d..these.end * d);
            let logits = program.passing("logits", Kind::F32, rows * width);
            network.views.head.logits(program, (states, d), 0..classes, (logits, width));
            let said = Sought {
                entries: program.output(Kind::F32, rows * k),
                sums: program.output(Kind::F32, 4 * rows),
                broken: program.output(Kind::U32, 2 * rows),
            };
            let [rows, classes, width] = [rows, classes, width].map(|size| size as u32);
            let logits = Logits { logits, rows, classes, width, temperature };
            all.push(listen(making, Written { these, logits, following, said }));
        }
        all
    }
}

fn list(making: &mut Making, network: &Network, hidden: View, wanted: &Wanted<'_>) -> Vec<Chunk> {
    let Wanted { classes, next, temperature, k, entries } = *wanted;
    let layer = Layer { hidden, classes, next, temperature, k };
    layer.sweep(making, network, |making, written| {
        let Written { these, logits, following, said } = written;
        let rows = these.len();
        let ids = match entries {
            Entries::Named(ids) => {
                let each_row = ids.len() != k;
                let ids = if each_row { &ids[these.start * k..these.end * k] } else { &ids[..] };
                let ids = making.send(ids);
                let naming = Named { ids, k: k as u32, each_row };
                making.program.call(named(logits, following, naming, said));
                None
            }
            Entries::Top | Entries::Drawn { .. } | Entries::Hidden(_) => {
                let ids = making.program.output(Kind::U32, rows * k);
                making.program.call(top_k(logits, following, ids, said, k as u32, Entry::Scaled));
                Some(ids)
            }
        };
        Chunk { rows, ids, said, drawn: None }
    })
}

fn draw_from(
    making: &mut Making,
    network: &Network,
    hidden: View,
    wanted: &WantedDraws<'_>,
) -> Vec<Chunk> {
    let WantedDraws { classes, next, temperature, draws, k, keys } = *wanted;
    let layer = Layer { hidden, classes, next, temperature, k };
    layer.sweep(making, network, |making, written| {
        let Written { these, logits, following, said } = written;
        let rows = these.len();
        let uniforms: Vec<f64> = keys[these].iter().flat_map(|key| key.uniforms(draws)).collect();
        let uniforms = making.send(&uniforms);
        let exact = making.program.output(Kind::U32, rows * k);
        making.program.call(match k {
            0 => named(logits, following, Named { ids: exact, k: 0, each_row: false }, said),
            _ => top_k(logits, following, exact, said, k as u32, Entry::LogP),
        });
        let drawn = making.program.output(Kind::U32, rows * draws as usize);
        let from = Drawing { exact, k: k as u32, broken: said.broken, uniforms, draws };
        making.program.call(draw(logits, from, drawn));
        Chunk { rows, ids: Some(exact), said, drawn: Some(drawn) }
    })
}

impl Answers {
    /// What was put out to this question, as the processor says it.
    ///
    /// # Panics
    /// When it is not the one that they were sought for.
    pub(super) fn read(&self, asked: Asked<'_>, outputs: &Outputs) -> Result<Said, NotFinite> {
        match (self, asked) {
            (Self::States(view), Asked::States) => Ok(Said::States(super::floats(outputs, *view))),
            (Self::Chunks(chunks), Asked::Listed(wanted)) => {
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
            (Self::Chunks(chunks), Asked::Drawn(wanted)) => {
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
            (Self::States(_), Asked::Listed(_) | Asked::Drawn(_))
            | (Self::Chunks(_), Asked::States) => unreachable!("another question: {asked:?}"),
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
