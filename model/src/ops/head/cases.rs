//! What the tests of the output layer compute with: logits given outright, and drawn hidden states.

use std::ops::Range;

use candle_core::{Result, Tensor};
use distill::signal::TopK;
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::full::FullRow;
use super::listed::Listed;
use super::row::{Row, RowLoss};
use super::{Divergence, HeadLoss, LossSettings, Tail, Teaching, head_loss};
use crate::ops::testing::score_top;
use crate::ops::{Precision, tensor};

pub(super) fn matrix(values: &[f32], columns: usize) -> Tensor {
    tensor(values.to_vec(), (values.len() / columns, columns)).expect("a matrix")
}

pub(super) fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().and_then(|t| t.to_vec1()).expect("values")
}

pub(super) fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| f64::from(v)).collect()
}

/// The norm of the difference over the norm of what is wanted.
pub(super) fn relative_error(found: &[f32], wanted: &[f64]) -> f64 {
    assert_eq!(found.len(), wanted.len());
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|v| v * v).sum::<f64>().sqrt();
    let difference = norm(&mut found.iter().zip(wanted).map(|(&a, b)| f64::from(a) - b));
    difference / norm(&mut wanted.iter().copied()).max(1e-30)
}

/// How logits are drawn.
#[derive(Clone, Copy, Debug)]
pub(in crate::ops) enum Shape {
    Spread(f32),
    /// One class far above all others.
    Peaked(f32),
    /// Two far groups: the largest of one are all there is of the mass.
    Split(f32),
}

pub(in crate::ops) fn draw(shape: Shape, classes: usize, rng: &mut ChaCha8Rng) -> Vec<f32> {
    let mut logits: Vec<f32> = (0..classes).map(|_| rng.random_range(-1.0..=1.0)).collect();
    match shape {
        Shape::Spread(size) => logits.iter_mut().for_each(|z| *z *= size),
        Shape::Peaked(height) => logits[rng.random_range(0..classes)] += height,
        Shape::Split(height) => {
            logits.iter_mut().for_each(|z| *z += if *z > 0.0 { height } else { -height });
        }
    }
    logits
}

pub(super) fn shape() -> impl Strategy<Value = Shape> {
    let size = prop_oneof![Just(0.01f32), Just(1.0), Just(8.0), Just(100.0), Just(1e4)];
    size.prop_flat_map(|s| {
        prop_oneof![Just(Shape::Spread(s)), Just(Shape::Peaked(s)), Just(Shape::Split(s))]
    })
}

/// S positions whose logits are given outright: the output matrix is the identity, with rows below
/// it that are not to take part.
pub(super) struct Case {
    pub(super) classes: usize,
    pub(super) logits: Vec<f32>,
    pub(super) targets: Vec<u32>,
    pub(super) signal: TopK,
    pub(super) settings: LossSettings,
}

pub(super) const SPARE_ROWS: usize = 3;

impl Case {
    pub(super) fn draw(
        classes: usize,
        k: usize,
        shapes: [Shape; 2],
        settings: LossSettings,
    ) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64((classes * 1009 + k) as u64);
        let positions = 1 + classes % 4;
        let mut signal = TopK::new(k);
        let (mut logits, mut targets) = (Vec::new(), Vec::new());
        for _ in 0..positions {
            logits.extend(draw(shapes[0], classes, &mut rng));
            let teacher = wide(&draw(shapes[1], classes, &mut rng));
            signal.push_exact(&teacher, settings.temperature);
            targets.push(rng.random_range(0..classes) as u32);
        }
        Self { classes, logits, targets, signal, settings }
    }

    pub(super) fn hidden(&self) -> Tensor {
        matrix(&self.logits, self.classes)
    }

    pub(super) fn w(&self) -> Tensor {
        let mut w = vec![7.0f32; (self.classes + SPARE_ROWS) * self.classes];
        for (i, w) in w[..self.classes * self.classes].iter_mut().enumerate() {
            *w = if i % (self.classes + 1) == 0 { 1.0 } else { 0.0 };
        }
        matrix(&w, self.classes)
    }

    /// Zeros for the gradient of the matrix.
    pub(super) fn gradient(&self) -> Tensor {
        self.w().zeros_like().expect("zeros")
    }

    pub(super) fn run(&self, scale: f64, grad: Option<&Tensor>) -> Result<HeadLoss> {
        head_loss(
            &self.hidden(),
            &self.w(),
            self.classes,
            &self.targets,
            Some(Teaching::TopK(&self.signal)),
            &self.settings,
            scale,
            grad,
        )
    }
}

/// Hidden states, a matrix, targets and a signal of a teacher unlike the student.
pub(super) struct Random {
    pub(super) hidden: Vec<f32>,
    pub(super) w: Tensor,
    pub(super) targets: Vec<u32>,
    pub(super) signal: TopK,
    classes: usize,
    width: usize,
}

impl Random {
    pub(super) fn new(
        positions: usize,
        classes: usize,
        width: usize,
        k: usize,
        temperature: f64,
    ) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(99);
        let mut drawn =
            |n: usize| -> Vec<f32> { (0..n).map(|_| rng.random_range(-1.5..1.5)).collect() };
        let hidden = drawn(positions * width);
        let w = matrix(&drawn(classes * width), width);
        let teacher = matrix(&drawn(positions * width), width);
        let targets = (0..positions).map(|s| (s * 7919 % classes) as u32).collect();
        let next = vec![None; positions];
        let signal =
            score_top(&teacher, &w, classes, &next, temperature, k, Precision::F32).unwrap().0;
        Self { hidden, w, targets, signal, classes, width }
    }

    pub(super) fn run(
        &self,
        rows: Range<usize>,
        settings: &LossSettings,
        dw: Option<&Tensor>,
    ) -> HeadLoss {
        let hidden = &self.hidden[rows.start * self.width..rows.end * self.width];
        let hidden = matrix(hidden, self.width);
        let signal = self.signal.slice(rows.clone());
        let targets = &self.targets[rows];
        let scale = 1.0 / self.targets.len() as f64;
        head_loss(
            &hidden,
            &self.w,
            self.classes,
            targets,
            Some(Teaching::TopK(&signal)),
            settings,
            scale,
            dw,
        )
        .expect("a loss")
    }
}

pub(super) const DEFAULTS: LossSettings = LossSettings {
    alpha: 0.7,
    temperature: 5.0,
    divergence: Divergence::ForwardKl,
    tail: Tail::Bucket,
    precision: Precision::F32,
};

/// The columns of a position's losses that other kinds of device make too, its argmax, and its gradient.
pub(in crate::ops) type Position = ([f64; 6], u32, Vec<f32>);

fn position(loss: &RowLoss, gradient: Vec<f32>) -> Position {
    let RowLoss { ce, kl, teacher_mass, student_mass, kl_rest, entropy, argmax, .. } = *loss;
    ([ce, kl, teacher_mass, student_mass, kl_rest, entropy], argmax, gradient)
}

/// A position under row `row` of a signal, its logits whatever they are.
pub(in crate::ops) fn listed_position(
    logits: &[f32],
    target: u32,
    signal: Option<(&TopK, usize)>,
    settings: &LossSettings,
) -> Position {
    let signal = signal.map(|(signal, row)| (Listed::TopK(signal), row));
    let (mut gradient, mut row) = (logits.to_vec(), Row::new(target as usize, signal, settings));
    row.listen(&mut gradient, 0);
    let heard = row.heard();
    heard.gradient(&mut gradient, 0);
    position(&heard.losses(), gradient)
}

/// A position beside a teacher's logits, whatever they are.
pub(in crate::ops) fn full_position(
    logits: &[f32],
    teacher: &[f32],
    target: u32,
    settings: &LossSettings,
) -> Position {
    let (mut gradient, mut row) = (logits.to_vec(), FullRow::new(target as usize, settings, false));
    row.listen(logits, teacher, 0);
    row.listen_again(logits, teacher);
    row.gradient(&mut gradient, teacher, 0);
    position(&row.losses(), gradient)
}
