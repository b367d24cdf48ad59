//! Draws against the probabilities they are from, and against the gradient they are to have on average.

use candle_core::{DType, Tensor};
use distill::reference;

use super::tests::{BLOCK, Case};
use crate::ops::Precision;
use crate::ops::head::{Divergence, LossSettings, Tail, Teaching, head_loss};
use crate::ops::testing::{matrix, random, values, wide};

/// 16 draws at each of 12,800 positions with the same logits, against p by Pearson's sum.
#[test]
#[expect(clippy::print_stdout, reason = "the figures, for whoever asks with --nocapture")]
fn many_draws_are_distributed_as_p() {
    let (rows, classes, temperature) = (12_800, 2 * BLOCK + 5, 1.5);
    // About a third of the classes have nearly nothing; two have a large share.
    let mut column: Vec<f32> = random(5, classes).iter().map(|z| 6.0 * z).collect();
    (column[17], column[BLOCK + 3]) = (15.0, 14.0);
    for k in [0, 1] {
        let case =
            Case { factors: vec![1.0; rows], column: column.clone(), temperature, draws: 16, k };
        let signal = case.run().signal;
        let mut counts = vec![0.0; classes];
        signal
            .ids
            .iter()
            .zip(&signal.counts)
            .for_each(|(&id, &n)| counts[id as usize] += f64::from(n));
        let all = 16.0 * rows as f64;
        let weight = |id: usize| {
            if k == 1 && id == 17 { 0.0 } else { (f64::from(column[id]) / temperature).exp() }
        };
        let sum: f64 = (0..classes).map(weight).sum();
        // Classes in order until 20 draws of them are expected.
        let (mut cells, mut square) = (0.0, 0.0);
        let (mut expected, mut found) = (0.0, 0.0);
        for (id, count) in counts.iter().enumerate() {
            expected += weight(id) / sum * all;
            found += count;
            if expected >= 20.0 {
                square += (found - expected) * (found - expected) / expected;
                (cells, expected, found) = (cells + 1.0, 0.0, 0.0);
            }
        }
        // Chi-square of n degrees has mean n and variance 2 n: within 3.5 standard deviations on both
        // sides, too good being as wrong as too bad. (A cell is much less than a 16th of the mass, but
        // for two of them: that one draw falls in each 16th makes no difference to the others.)
        let off = (square - cells) / (2.0f64 * cells).sqrt();
        println!("k = {k}: chi-square {square:.0} of {cells} cells, {off:.2} standard deviations");
        assert!(cells > 1000.0 && off.abs() < 3.5, "k = {k}: {square} of {cells} cells, {off}");
    }
}

/// Mean over keys of the gradient with respect to the logits, as the output layer computes it, and how it
/// varies.
fn mean_gradient(z: &[f32], y: &[f32], k: usize, t: f64, draws: u32, rows: usize) -> [Vec<f64>; 2] {
    let classes = z.len();
    let case = Case { factors: vec![1.0; rows], column: y.to_vec(), temperature: t, draws, k };
    let signal = case.run().signal;
    let mut identity = vec![0.0; classes * classes];
    (0..classes).for_each(|i| identity[i * (classes + 1)] = 1.0);
    let (hidden, w) = (matrix(&z.repeat(rows), rows, classes), matrix(&identity, classes, classes));
    let grad = Tensor::zeros((classes, classes), DType::F32, hidden.device()).unwrap();
    let settings = LossSettings {
        alpha: 1.0,
        temperature: t,
        divergence: Divergence::ForwardKl,
        tail: Tail::Bucket,
        precision: Precision::F32,
    };
    let said = Some(Teaching::Draws(&signal));
    let targets = vec![0; rows];
    let loss =
        head_loss(&hidden, &w, classes, &targets, said, &settings, 1.0, Some(&grad)).unwrap();
    let all = wide(&values(&loss.d_hidden.unwrap()));
    let n = rows as f64;
    // alpha T² is no part of the reference.
    let column = |j: usize| all[j..].iter().step_by(classes).map(|g| g / (t * t));
    let mean: Vec<f64> = (0..classes).map(|j| column(j).sum::<f64>() / n).collect();
    let square = |j: usize| column(j).map(|g| (g - mean[j]) * (g - mean[j])).sum::<f64>() / n;
    let variances = (0..classes).map(square).collect();
    [mean, variances]
}

/// What the variances should be, with the classes that are not among the k largest laid end to end and a
/// draw in each n-th part of the whole: of every part, the share that is a class's is the chance of one
/// more draw of it. And what those of independent draws would be.
fn variances(y: &[f64], k: usize, t: f64, draws: u32) -> [Vec<f64>; 2] {
    let sum: f64 = y.iter().map(|y| (y / t).exp()).sum();
    let mut order: Vec<usize> = (0..y.len()).collect();
    order.sort_by(|&a, &b| y[b].total_cmp(&y[a]));
    order[k..].sort_unstable();
    let rest: f64 = order[k..].iter().map(|&id| (y[id] / t).exp() / sum).sum();
    let [mut parts, mut independent] = [vec![0.0; y.len()], vec![0.0; y.len()]];
    let (n, mut start) = (f64::from(draws), 0.0);
    for &id in &order[k..] {
        let share = (y[id] / t).exp() / sum / rest;
        let (from, to) = (n * start, n * (start + share));
        let of_part = |part: u32| (to.min(f64::from(part) + 1.0) - from.max(part.into())).max(0.0);
        let varies: f64 = (0..draws).map(of_part).map(|chance| chance * (1.0 - chance)).sum();
        let unit = rest * rest / (t * t) / n;
        parts[id] = unit * varies / n;
        independent[id] = unit * share * (1.0 - share);
        start += share;
    }
    [parts, independent]
}

#[test]
#[expect(clippy::print_stdout, reason = "the figures, for whoever asks with --nocapture")]
fn the_mean_gradient_is_that_of_the_full_signal_and_the_union_varies_less() {
    let (classes, draws, rows) = (48, 16, 8000);
    let z: Vec<f32> = random(6, classes).iter().map(|z| 2.0 * z).collect();
    let mut y: Vec<f32> = random(7, classes).iter().map(|z| 3.0 * z).collect();
    // A peaked teacher: at T = 1 its first two have 0.98 of the mass.
    (y[3], y[40]) = (9.0, 8.0);
    for t in [1.0, 3.0] {
        let full = reference::kl_full(&wide(&z), &wide(&y), t).gradient;
        let mut noise = Vec::new();
        for k in [0, 4] {
            let [mean, found] = mean_gradient(&z, &y, k, t, draws, rows);
            let [wanted, independent] = variances(&wide(&y), k, t, draws);
            let mut square = 0.0;
            for j in 0..classes {
                // A gradient is a float32.
                let error = (wanted[j] / rows as f64).sqrt() + 1e-7;
                let off = (mean[j] - full[j]) / error;
                assert!(off.abs() < 4.5, "k = {k}, T = {t}, class {j}: {off} standard errors");
                square += off * off;
            }
            // All of them together: the mean of a square is 1, and it varies by 2 / classes.
            let square = square / classes as f64;
            assert!(
                square < 1.0 + 4.0 * (2.0 / classes as f64).sqrt(),
                "k = {k}, T = {t}: {square}"
            );
            let [found, wanted, independent] =
                [found, wanted, independent].map(|variances| variances.iter().sum::<f64>());
            println!("k = {k}, T = {t}: {:.3} of independent draws' variance", found / independent);
            assert!((found / wanted - 1.0).abs() < 0.05, "k = {k}, T = {t}: {found} {wanted}");
            assert!(found < independent, "k = {k}, T = {t}: {found} {independent}");
            noise.push(found);
        }
        println!("T = {t}: the union has {:.4} of the variance", noise[1] / noise[0]);
        assert!(noise[1] < if t == 1.0 { 0.05 } else { 0.9 } * noise[0], "T = {t}: {noise:?}");
    }
}
