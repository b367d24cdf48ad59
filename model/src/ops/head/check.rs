//! What the output layer refuses, each with what was found and wanted.

use candle_core::{Error, Result, Tensor, bail};
use distill::signal::TopK;

use super::{Divergence, LossSettings, Tail, Teaching};
use crate::ops::{expect_len, expect_shape};

/// Refuses a matrix `[V, D]` whose width is not `width` or which has fewer rows than `classes`.
pub(in crate::ops) fn check_classes(
    what: &str,
    w: &Tensor,
    classes: usize,
    width: usize,
) -> Result<()> {
    let (rows, columns) = w.dims2()?;
    if columns != width {
        bail!("{what}: width {columns} found, {width} wanted");
    }
    if classes == 0 || classes > rows {
        bail!("{what}: {classes} classes asked for, it has rows for 1 to {rows}");
    }
    Ok(())
}

/// Refuses what no losses can be made of, by an output matrix of so many rows.
pub(crate) fn check_asked(
    rows: usize,
    classes: usize,
    targets: &[u32],
    signal: Option<Teaching<'_>>,
    settings: &LossSettings,
    gradient: bool,
) -> Result<()> {
    if classes == 0 || classes > rows {
        bail!("output matrix: {classes} classes asked for, it has rows for 1 to {rows}");
    }
    check_targets(targets, classes)?;
    check_settings(settings, signal, gradient)?;
    match signal {
        Some(said) => check_teaching(said, targets.len(), classes),
        None => Ok(()),
    }
}

/// Refuses settings no loss can be made of.
fn check_settings(
    settings: &LossSettings,
    signal: Option<Teaching<'_>>,
    gradient: bool,
) -> Result<()> {
    let LossSettings { alpha, temperature, divergence, tail, .. } = *settings;
    if !(0.0..=1.0).contains(&alpha) {
        bail!("alpha is {alpha}, it must lie in 0 to 1");
    }
    check_temperature(temperature)?;
    if let Err(error) = divergence.checked() {
        bail!("{error}");
    }
    let listed = matches!(signal, Some(Teaching::TopK(_)));
    if listed && tail == Tail::Renormalise && divergence.simplest() != Divergence::ForwardKl {
        bail!(
            "divergence {divergence} on a signal of k tokens needs the mass of the others: use the tail \
             bucket, or forward-kl with the tail renormalise"
        );
    }
    let drawn = matches!(signal, Some(Teaching::Draws(_)));
    if drawn && divergence.simplest() != Divergence::ForwardKl {
        bail!(
            "divergence {divergence} cannot be had of draws, which estimate the forward one alone: use \
             forward-kl, or a signal of k tokens or of hidden states"
        );
    }
    if gradient && signal.is_none() && alpha != 0.0 {
        bail!("alpha is {alpha} but there is no signal of a teacher: without one it must be 0");
    }
    Ok(())
}

/// Refuses a temperature that is not a positive number.
pub(in crate::ops) fn check_temperature(temperature: f64) -> Result<()> {
    if !(temperature.is_finite() && temperature > 0.0) {
        bail!("temperature is {temperature}, it must be finite and above 0");
    }
    Ok(())
}

fn check_targets(targets: &[u32], classes: usize) -> Result<()> {
    if let Some(at) = targets.iter().position(|&id| id as usize >= classes) {
        bail!("position {at}: target {} is not one of the {classes} classes", targets[at]);
    }
    Ok(())
}

/// Refuses what a teacher cannot mean of `positions` positions and these classes.
fn check_teaching(said: Teaching<'_>, positions: usize, classes: usize) -> Result<()> {
    match said {
        Teaching::TopK(signal) => check_signal(signal, positions, classes),
        Teaching::Draws(signal) => {
            expect_len("signal rows", signal.rows(), positions)?;
            signal.check(classes).map_err(|error| Error::Msg(format!("signal {error}")))
        }
        Teaching::Full { hidden, w } => {
            let width = hidden.dim(1)?;
            expect_shape("the teacher's hidden states", hidden, &[positions, width])?;
            check_classes("the teacher's output matrix", w, classes, width)
        }
    }
}

fn check_signal(signal: &TopK, positions: usize, classes: usize) -> Result<()> {
    let k = signal.k;
    if k == 0 || k > classes {
        bail!("signal: k is {k}, it must lie in 1 to {classes}, the classes");
    }
    expect_len("signal rows", signal.rows(), positions)?;
    expect_len("signal ids", signal.ids.len(), positions * k)?;
    expect_len("signal values", signal.scaled.len(), positions * k)?;
    expect_len("signal rests", signal.log_rest.len(), positions)?;
    if let Some(at) = signal.ids.iter().position(|&id| id as usize >= classes) {
        let (row, id) = (at / k, signal.ids[at]);
        bail!("signal row {row}: id {id} is not one of the {classes} classes");
    }
    let outside = |&log_rest: &f32| log_rest > f32::NEG_INFINITY;
    if let (true, Some(row)) = (k == classes, signal.log_rest.iter().position(outside)) {
        bail!("signal row {row}: mass outside its {k} ids, which are all the classes there are");
    }
    Ok(())
}
