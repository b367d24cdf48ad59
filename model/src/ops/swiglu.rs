//! The gated activation between the projections of the feed-forward block.

use candle_core::{Result, Tensor, bail};
use multiversion::multiversion;

use super::math::sigmoid_f32;
use super::parallel::{in_chunks, rows_of_task};
use super::{expect_shape, read, tensor};

/// `a = silu(gate)·up` with `silu(x) = x/(1 + e^-x)`: rows `[gate [I], up [I]]` of `gate_up`
/// [N, 2I] give [N, I].
///
/// # Errors
/// When a shape, an element type or the device does not fit.
pub fn swiglu(gate_up: &Tensor) -> Result<Tensor> {
    let (n, i) = half_width(gate_up)?;
    let gate_up = read(gate_up);
    let gate_up = gate_up.f32()?;
    let chunk = rows_of_task(i) * i;
    let (a, _) = in_chunks(n * i, chunk, |number, a| {
        gate_rows(&gate_up[number * 2 * chunk..][..2 * a.len()], i, a);
    });
    tensor(a, (n, i))
}

/// The gradient of [`swiglu`] with respect to `gate_up`: `da` [N, I] gives [N, 2I].
///
/// # Errors
/// When a shape, an element type or the device does not fit.
pub fn swiglu_backward(da: &Tensor, gate_up: &Tensor) -> Result<Tensor> {
    let (n, i) = half_width(gate_up)?;
    expect_shape("gradient of a gated activation", da, &[n, i])?;
    let (da, gate_up) = (read(da), read(gate_up));
    let (da, gate_up) = (da.f32()?, gate_up.f32()?);
    let chunk = rows_of_task(i) * i;
    let (d, _) = in_chunks(n * 2 * i, 2 * chunk, |number, d| {
        let da = &da[number * chunk..][..d.len() / 2];
        gate_rows_backward(da, &gate_up[number * 2 * chunk..][..d.len()], i, d);
    });
    tensor(d, (n, 2 * i))
}

fn half_width(gate_up: &Tensor) -> Result<(usize, usize)> {
    let (n, width) = gate_up.dims2()?;
    if width % 2 != 0 {
        bail!("gate and up must be equally wide: their rows hold {width} values together");
    }
    Ok((n, width / 2))
}

#[multiversion(targets("x86_64+avx512f+avx512vl+avx512bw+avx512dq", "x86_64+avx2"))]
fn gate_rows(gate_up: &[f32], width: usize, a: &mut [f32]) {
    for (row, a) in gate_up.chunks_exact(2 * width).zip(a.chunks_exact_mut(width)) {
        let (gate, up) = row.split_at(width);
        for i in 0..width {
            a[i] = gate[i] * sigmoid_f32(gate[i]) * up[i];
        }
    }
}

#[multiversion(targets("x86_64+avx512f+avx512vl+avx512bw+avx512dq", "x86_64+avx2"))]
fn gate_rows_backward(da: &[f32], gate_up: &[f32], width: usize, d: &mut [f32]) {
    let rows = gate_up.chunks_exact(2 * width).zip(d.chunks_exact_mut(2 * width));
    for ((row, d), da) in rows.zip(da.chunks_exact(width)) {
        let (gate, up) = row.split_at(width);
        let (d_gate, d_up) = d.split_at_mut(width);
        for i in 0..width {
            let s = sigmoid_f32(gate[i]);
            // silu'(x) = s·(1 + x·(1 - s)).
            d_gate[i] = da[i] * up[i] * (s * (1.0 + gate[i] * (1.0 - s)));
            d_up[i] = da[i] * (gate[i] * s);
        }
    }
}

#[cfg(test)]
#[path = "swiglu_tests.rs"]
mod tests;
