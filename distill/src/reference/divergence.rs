//! Which divergence of the student from the teacher, and what it is over outcomes whose logarithms
//! are known: all classes, or k tokens and everything else.
//!
//! Letters: `p` the teacher, `q` the student, `m = beta p + (1 - beta) q`, `D` the value, and
//! `q = softmax(u)` over the outcomes. A divergence `Σ f(p_j, q_j)` has
//! `dD/du_j = h_j - q_j Σ h_i` with `h_j = q_j f'_q(p_j, q_j)`:
//!
//! ```text
//! forward     f = p log(p / q)                                dD/du_j = q_j - p_j
//! reverse     f = q log(q / p)                                dD/du_j = q_j (log(q_j / p_j) - D)
//! jsd         f = beta p log(p / m) + (1 - beta) q log(q / m)
//!             dD/du_j = (1 - beta) q_j (log(q_j / m_j) - KL(q || m))
//! ```
//!
//! An outcome of `p = q = 0` takes no part anywhere.

use std::fmt;

use super::Loss;

/// How far the student is from the teacher.
///
/// The divergences and the sense of `beta` are those of generalised knowledge distillation (GKD,
/// Agarwal et al. 2024, arXiv:2306.13649) as TRL's `GKDTrainer.generalized_jsd_loss` computes them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Divergence {
    /// `KL(p || q)`: the student has to be where the teacher is.
    #[default]
    ForwardKl,
    /// `KL(q || p)`: the student may only be where the teacher is. Infinite where it is elsewhere.
    ReverseKl,
    /// The generalised Jensen-Shannon divergence `beta KL(p || m) + (1 - beta) KL(q || m)`, always
    /// finite. It vanishes at both ends, as `beta KL(p || q)` and `(1 - beta) KL(q || p)`; exactly
    /// 0 means the forward divergence itself and exactly 1 the reverse one, as in TRL.
    Jsd {
        /// The teacher's share of `m`, 0 to 1.
        beta: f64,
    },
    /// `(1 - beta) KL(p || q) + beta KL(q || p)`.
    Mixture {
        /// The weight of the reverse divergence, 0 to 1.
        beta: f64,
    },
}

/// A `beta` that is no share.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error("beta of the divergence is {found}: it must lie in 0 to 1")]
pub struct BetaOutside {
    /// The value.
    pub found: f64,
}

impl Divergence {
    /// This divergence if there is such a one.
    ///
    /// # Errors
    /// [`BetaOutside`] when `beta` is not within 0 to 1, or no number.
    pub fn checked(self) -> Result<Self, BetaOutside> {
        match self.beta() {
            Some(found) if !(0.0..=1.0).contains(&found) => Err(BetaOutside { found }),
            Some(_) | None => Ok(self),
        }
    }

    /// The same divergence without a `beta` where it is 0 or 1.
    pub fn simplest(self) -> Self {
        match self.beta() {
            Some(0.0) => Self::ForwardKl,
            Some(1.0) => Self::ReverseKl,
            Some(_) | None => self,
        }
    }

    /// The divergence over outcomes of log-probabilities `log_p` and `log_q`, each side summing to
    /// 1, and its gradient with respect to `u`; not finite where the reverse divergence is not.
    ///
    /// # Panics
    /// When the two differ in length.
    pub fn over(self, log_p: &[f64], log_q: &[f64]) -> Loss {
        assert_eq!(log_p.len(), log_q.len(), "outcomes of the teacher and of the student");
        match self.simplest() {
            Self::ForwardKl => forward(log_p, log_q),
            Self::ReverseKl => reverse(log_p, log_q),
            Self::Jsd { beta } => jsd(log_p, log_q, beta),
            Self::Mixture { beta } => mixture(log_p, log_q, beta),
        }
    }

    fn beta(self) -> Option<f64> {
        match self {
            Self::ForwardKl | Self::ReverseKl => None,
            Self::Jsd { beta } | Self::Mixture { beta } => Some(beta),
        }
    }
}

impl fmt::Display for Divergence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ForwardKl => write!(f, "forward-kl"),
            Self::ReverseKl => write!(f, "reverse-kl"),
            Self::Jsd { beta } => write!(f, "jsd with beta {beta}"),
            Self::Mixture { beta } => write!(f, "mixture with beta {beta}"),
        }
    }
}

fn forward(log_p: &[f64], log_q: &[f64]) -> Loss {
    let value = pairs(log_p, log_q).map(|(lp, lq)| term(lp, lp - lq)).sum();
    Loss { value, gradient: pairs(log_p, log_q).map(|(lp, lq)| lq.exp() - lp.exp()).collect() }
}

fn reverse(log_p: &[f64], log_q: &[f64]) -> Loss {
    let value: f64 = pairs(log_p, log_q).map(|(lp, lq)| term(lq, lq - lp)).sum();
    let slope = |(lp, lq): (f64, f64)| term(lq, lq - lp - value);
    Loss { value, gradient: pairs(log_p, log_q).map(slope).collect() }
}

fn jsd(log_p: &[f64], log_q: &[f64], beta: f64) -> Loss {
    // log(m / q) and log(m / p) come from log(q / p): neither cancels where p and q are close.
    let below_q = |(lp, lq): (f64, f64)| term(lq, -log_of_mixed(beta, lp - lq));
    let below_p = |(lp, lq): (f64, f64)| term(lp, -log_of_mixed(1.0 - beta, lq - lp));
    let of_student: f64 = pairs(log_p, log_q).map(below_q).sum();
    let of_teacher: f64 = pairs(log_p, log_q).map(below_p).sum();
    let slope =
        |(lp, lq): (f64, f64)| (1.0 - beta) * term(lq, -log_of_mixed(beta, lp - lq) - of_student);
    Loss {
        value: beta * of_teacher + (1.0 - beta) * of_student,
        gradient: pairs(log_p, log_q).map(slope).collect(),
    }
}

fn mixture(log_p: &[f64], log_q: &[f64], beta: f64) -> Loss {
    let (forward, reverse) = (forward(log_p, log_q), reverse(log_p, log_q));
    let mix = |forward: f64, reverse: f64| (1.0 - beta) * forward + beta * reverse;
    let gradient = pairs(&forward.gradient, &reverse.gradient).map(|(f, r)| mix(f, r)).collect();
    Loss { value: mix(forward.value, reverse.value), gradient }
}

fn pairs(a: &[f64], b: &[f64]) -> impl Iterator<Item = (f64, f64)> {
    a.iter().copied().zip(b.iter().copied())
}

/// `exp(log_weight) factor`, 0 where the weight is 0 whatever the factor.
fn term(log_weight: f64, factor: f64) -> f64 {
    if log_weight == f64::NEG_INFINITY { 0.0 } else { log_weight.exp() * factor }
}

/// `log(1 - share + share e^d)`, to the last digits near d = 0 and at a small share.
fn log_of_mixed(share: f64, d: f64) -> f64 {
    // e^709 is the last that float64 holds.
    if d > 700.0 {
        d + (share + (1.0 - share) * (-d).exp()).ln()
    } else {
        (share * d.exp_m1()).ln_1p()
    }
}

#[cfg(test)]
#[path = "divergence_tests.rs"]
mod tests;
