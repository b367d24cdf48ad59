//! The losses and their gradients in float64, one position at a time: slow, plain, and the truth
//! the tensor code is tested against.
//!
//! Letters: `z` student logits and `y` teacher logits of one position over V classes, `u = z / T`,
//! `q = softmax(u)`, `p = softmax(y / T)`. Every divergence here is *without* the factor T², and every
//! gradient is with respect to `z`. With `g` the gradient of a [`Divergence`] with respect to the
//! logits of its outcomes (forward: `g_j = q_j - p_j`):
//!
//! ```text
//! total = alpha T² D + (1 - alpha) CE
//! CE        d/dz_j = softmax(z)_j - [j is the target]
//! full      d/dz_j = g_j / T
//! bucket    d/dz_j = g_j / T                      j one of the k
//!                    g_rest s_j / T               others, s = softmax of u over the others
//! renorm.   d/dz_j = (q_j - p'_j) / T             p' = p over the sum of the k, 0 for the others
//! ```
//!
//! `q_rest` has a logsumexp of its own, over the classes outside the k, and `p_rest` comes from
//! the signal's `log_rest`: `1 - Σ q_i` would lose all its digits where the k hold nearly
//! everything. `s_j` stands for `q_j / q_rest`, which overflows where `q_rest` is tiny.

mod divergence;

use crate::signal::{Draws, TopK, log_sum_exp};
pub use divergence::{BetaOutside, Divergence};

/// What becomes of the mass outside the k tokens of a top-k signal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tail {
    /// One more outcome: k + 1 probabilities on both sides.
    #[default]
    Bucket,
    /// The teacher's k are scaled up to sum to 1, the student's stay as they are over all
    /// classes. Biased: it drives the student to be over-confident.
    Renormalise,
}

/// A loss of one position and its gradient with respect to the student's logits.
#[derive(Clone, Debug, PartialEq)]
pub struct Loss {
    /// In nats; infinite where the student rules out what the teacher holds possible.
    pub value: f64,
    /// `[V]`.
    pub gradient: Vec<f64>,
}

/// `-log softmax(z)[target]`, at T = 1.
///
/// # Panics
/// When `target` is not below the number of logits.
pub fn cross_entropy(z: &[f64], target: usize) -> Loss {
    let log_q = log_softmax(z, 1.0);
    let mut gradient: Vec<f64> = log_q.iter().map(|l| l.exp()).collect();
    gradient[target] -= 1.0;
    Loss { value: -log_q[target], gradient }
}

/// `KL(softmax(y / T) || softmax(z / T))` over all classes.
///
/// # Panics
/// When the two do not have the same number of classes.
pub fn kl_full(z: &[f64], y: &[f64], temperature: f64) -> Loss {
    divergence_full(z, y, temperature, Divergence::ForwardKl)
}

/// The divergence of `softmax(z / T)` from `softmax(y / T)` over all classes.
///
/// # Panics
/// When the two do not have the same number of classes.
pub fn divergence_full(z: &[f64], y: &[f64], temperature: f64, divergence: Divergence) -> Loss {
    assert_eq!(z.len(), y.len(), "student and teacher logits of different length");
    let (log_p, log_q) = (log_softmax(y, temperature), log_softmax(z, temperature));
    let mut loss = divergence.over(&log_p, &log_q);
    loss.gradient.iter_mut().for_each(|g| *g /= temperature);
    loss
}

/// The forward divergence on row `row` of a top-k signal: [`kl_bucket`] or [`kl_renormalised`]. The
/// signal's temperature must be `temperature`.
pub fn kl_top_k(z: &[f64], signal: &TopK, row: usize, temperature: f64, tail: Tail) -> Loss {
    let ids = &signal.ids[row * signal.k..(row + 1) * signal.k];
    let (p, rest) = signal.probabilities(row);
    match tail {
        Tail::Bucket => kl_bucket(z, ids, &p, rest, temperature),
        Tail::Renormalise => kl_renormalised(z, ids, &p, temperature),
    }
}

/// The divergence on row `row` of a top-k signal, its tail a bucket: [`divergence_bucket`]. The
/// signal's temperature must be `temperature`. [`Tail::Renormalise`] is defined for the forward
/// divergence alone, as [`kl_renormalised`].
pub fn divergence_top_k(
    z: &[f64],
    signal: &TopK,
    row: usize,
    temperature: f64,
    divergence: Divergence,
) -> Loss {
    let ids = &signal.ids[row * signal.k..(row + 1) * signal.k];
    let (log_p, log_rest) = signal.log_probabilities(row);
    divergence_bucket(z, ids, &log_p, log_rest, temperature, divergence)
}

/// The forward divergence over k + 1 outcomes: the k tokens `ids` of probabilities `p`, and
/// everything else together, of probability `p_rest`. Never negative, at most [`kl_full`], and equal
/// to it when k = V.
///
/// # Panics
/// When an id is not below the number of logits.
pub fn kl_bucket(z: &[f64], ids: &[u32], p: &[f64], p_rest: f64, temperature: f64) -> Loss {
    let log_p: Vec<f64> = p.iter().map(|p| p.ln()).collect();
    divergence_bucket(z, ids, &log_p, p_rest.ln(), temperature, Divergence::ForwardKl)
}

/// A divergence over k + 1 outcomes: the k tokens `ids` of log-probabilities `log_p`, and everything
/// else together, of `log_p_rest`. Never negative, at most [`divergence_full`], and equal to it when
/// k = V.
///
/// # Panics
/// When an id is not below the number of logits, or there are not as many of `log_p`.
pub fn divergence_bucket(
    z: &[f64],
    ids: &[u32],
    log_p: &[f64],
    log_p_rest: f64,
    temperature: f64,
    divergence: Divergence,
) -> Loss {
    let log_q = log_softmax(z, temperature);
    let mut others = log_q.clone();
    ids.iter().for_each(|&id| others[id as usize] = f64::NEG_INFINITY);
    let log_q_rest = log_sum_exp(others.iter().copied());

    let of_ids = ids.iter().map(|&id| log_q[id as usize]);
    let log_q: Vec<f64> = of_ids.chain([log_q_rest]).collect();
    let outcomes = divergence.over(&[log_p, &[log_p_rest]].concat(), &log_q);
    let of_rest = outcomes.gradient[ids.len()] / temperature;
    // Where the student leaves the others nothing at all, they have no direction to grow in.
    let share =
        |other: &f64| if *other == f64::NEG_INFINITY { 0.0 } else { (other - log_q_rest).exp() };
    let mut gradient: Vec<f64> = others.iter().map(|other| of_rest * share(other)).collect();
    for (&id, of_id) in ids.iter().zip(&outcomes.gradient) {
        gradient[id as usize] = of_id / temperature;
    }
    Loss { value: outcomes.value, gradient }
}

/// The divergence of the teacher's k tokens, scaled up to sum to 1, from the student's
/// probabilities of the same tokens among all classes.
///
/// # Panics
/// When an id is not below the number of logits.
pub fn kl_renormalised(z: &[f64], ids: &[u32], p: &[f64], temperature: f64) -> Loss {
    let log_q = log_softmax(z, temperature);
    let mass: f64 = p.iter().sum();
    let mut value = 0.0;
    let mut gradient: Vec<f64> = log_q.iter().map(|l| l.exp()).collect();
    for (&id, &p_i) in ids.iter().zip(p) {
        let scaled_up = p_i / mass;
        value += kl_term(scaled_up, scaled_up.ln(), log_q[id as usize]);
        gradient[id as usize] -= scaled_up;
    }
    gradient.iter_mut().for_each(|g| *g /= temperature);
    Loss { value, gradient }
}

/// The forward divergence of row `row` of draws, whose temperature must be `temperature`: with
/// `p'` the [`Draws::estimate`], `Σ p'_j (log p'_j - log q_j)` over the listed ids, q over all classes.
///
/// The mean of p' over draws is p, and the gradient `(q - p') / T` is linear in p': its mean is that of
/// [`kl_full`]. The value's is not. `-Σ p' log q` has the mean it should have, the cross-entropy of p and
/// q; `Σ p' log p'` is minus the entropy of what was drawn, which is on average below p's. So the
/// value is on average above the divergence, by an amount that knows nothing of the student: between two
/// students the difference of the values is unbiased, and a value does not go to 0 as teacher and student
/// become alike.
///
/// # Panics
/// When an id is not below the number of logits.
pub fn kl_draws(z: &[f64], signal: &Draws, row: usize, temperature: f64) -> Loss {
    let (ids, p) = signal.estimate(row);
    kl_renormalised(z, &ids, &p, temperature)
}

/// `alpha T² kl + (1 - alpha) ce`. A part of weight 0 is left out, even where it is infinite.
pub fn total(kl: &Loss, ce: &Loss, alpha: f64, temperature: f64) -> Loss {
    let kl_weight = alpha * temperature * temperature;
    let weigh = |kl: f64, ce: f64| {
        let kl_part = if alpha == 0.0 { 0.0 } else { kl_weight * kl };
        let ce_part = if alpha == 1.0 { 0.0 } else { (1.0 - alpha) * ce };
        kl_part + ce_part
    };
    let gradient = kl.gradient.iter().zip(&ce.gradient).map(|(&k, &c)| weigh(k, c)).collect();
    Loss { value: weigh(kl.value, ce.value), gradient }
}

/// The student's mass on the tokens `ids`: `Σ softmax(z / T)_i`.
pub fn student_mass(z: &[f64], ids: &[u32], temperature: f64) -> f64 {
    let log_q = log_softmax(z, temperature);
    ids.iter().map(|&id| log_q[id as usize].exp()).sum()
}

/// `log softmax(x / T)`.
fn log_softmax(x: &[f64], temperature: f64) -> Vec<f64> {
    let log_z = log_sum_exp(x.iter().map(|v| v / temperature));
    x.iter().map(|v| v / temperature - log_z).collect()
}

/// `p log(p / q)`, 0 for what the teacher rules out.
fn kl_term(p: f64, log_p: f64, log_q: f64) -> f64 {
    if p > 0.0 { p * (log_p - log_q) } else { 0.0 }
}

#[cfg(test)]
#[path = "reference_tests.rs"]
mod tests;
