//! What the output layer's loss comes to, position by position.

use candle_core::Tensor;

use super::row::RowLoss;

/// A teacher's own losses of S positions.
#[derive(Clone, Debug, PartialEq)]
pub struct TeacherLoss {
    /// `-log softmax(y)[target]` at T = 1, `[S]`.
    pub ce: Vec<f32>,
    /// Its most probable class, `[S]`; the lower id among equals.
    pub argmax: Vec<u32>,
}

/// The losses of S positions, and the gradient of their scaled total.
#[derive(Clone, Debug)]
pub struct HeadLoss {
    /// `-log softmax(z)[target]` at T = 1, `[S]`. NaN where a logit is not a number.
    pub ce: Vec<f32>,
    /// The divergence from the teacher at T, *without* T², `[S]`; 0 without a signal, infinite where a
    /// Kullback-Leibler divergence is.
    pub kl: Vec<f32>,
    /// The student's most probable class, `[S]`; the lower id among equals.
    pub argmax: Vec<u32>,
    /// `Σ p_i` over the signal's ids, `[S]`; 0 without a signal, 1 where it says all, or draws are to.
    pub teacher_mass: Vec<f32>,
    /// `Σ q_i` over the signal's ids, `[S]`; likewise.
    pub student_mass: Vec<f32>,
    /// Of `kl`, what the outcome of all unlisted tokens adds, `[S]`; 0 where there is none, NaN where another
    /// divergence than the forward one is taken over them.
    pub kl_rest: Vec<f32>,
    /// Entropy of the teacher at T, in nats, over the outcomes its signal tells apart, `[S]`; NaN of draws
    /// and without a signal.
    pub teacher_entropy: Vec<f32>,
    /// What a teacher that says all has itself, where no gradient was asked for.
    pub teacher: Option<TeacherLoss>,
    /// Gradient with respect to `hidden`, `[S, D]`; only when a gradient was asked for.
    pub d_hidden: Option<Tensor>,
}

impl HeadLoss {
    pub(super) fn new(rows: &[RowLoss], d_hidden: Option<Tensor>) -> Self {
        let column = |of: fn(&RowLoss) -> f64| rows.iter().map(|row| of(row) as f32).collect();
        let of_teacher = rows.iter().map(|row| row.teacher.map(|(ce, id)| (ce as f32, id)));
        let teacher = of_teacher.collect::<Option<(Vec<f32>, Vec<u32>)>>();
        Self {
            ce: column(|row| row.ce),
            kl: column(|row| row.kl),
            argmax: rows.iter().map(|row| row.argmax).collect(),
            teacher_mass: column(|row| row.teacher_mass),
            student_mass: column(|row| row.student_mass),
            kl_rest: column(|row| row.kl_rest),
            teacher_entropy: column(|row| row.entropy),
            teacher: teacher.map(|(ce, argmax)| TeacherLoss { ce, argmax }),
            d_hidden,
        }
    }
}
