//! Tests of the elementary functions, against `f64` and against the `half` crate.

use super::*;

/// Distance in units of the last place between a value and the rounding of an exact one.
fn ulps(found: f32, exact: f64) -> f64 {
    let nearest = exact as f32;
    let unit = f64::from(f32::from_bits(nearest.to_bits() + 1)) - f64::from(nearest);
    (f64::from(found) - exact).abs() / unit
}

#[test]
fn exp_is_within_one_and_a_quarter_units_over_the_whole_range() {
    let mut worst = 0.0_f64;
    let mut x = -87.33_f32;
    while x < 88.72 {
        worst = worst.max(ulps(exp_f32(x), f64::from(x).exp()));
        x += 0.000_37;
    }
    assert!(worst < 1.25, "worst error {worst} ulp");
}

#[test]
fn exp_in_float64_is_near_the_systems_own_over_the_whole_range() {
    let mut x: Vec<f64> = (0..1_400_000).map(|i| -708.3 + f64::from(i) * 1.012e-3).collect();
    let wanted: Vec<f64> = x.iter().map(|x| x.exp()).collect();
    exp_in_place_f64(&mut x);
    let pairs = x.iter().zip(&wanted);
    let worst = pairs.map(|(a, b)| (a / b - 1.0).abs()).fold(0.0, f64::max);
    assert!(worst < 2.0 * f64::EPSILON, "{worst}");
    let mut edges = [0.0, -0.0, f64::NEG_INFINITY, -1e300, f64::INFINITY, 709.79, f64::NAN, -708.4];
    exp_in_place_f64(&mut edges);
    assert_eq!(edges[..6], [1.0, 1.0, 0.0, 0.0, f64::INFINITY, f64::INFINITY]);
    assert!(edges[6].is_nan() && edges[7] == 0.0);
}

#[test]
fn exp_of_the_edges() {
    assert_eq!(exp_f32(0.0), 1.0);
    assert_eq!(exp_f32(-0.0), 1.0);
    assert_eq!(exp_f32(f32::NEG_INFINITY), 0.0);
    assert_eq!(exp_f32(-1e30), 0.0);
    assert_eq!(exp_f32(f32::INFINITY), f32::INFINITY);
    assert_eq!(exp_f32(88.73), f32::INFINITY);
    assert!(exp_f32(88.72).is_finite());
    assert!(exp_f32(f32::NAN).is_nan());
    assert!(exp_f32(-87.329_99) >= f32::MIN_POSITIVE);
    assert_eq!(exp_f32(-87.330_01), 0.0);
}

#[test]
fn ln_is_within_a_unit_over_the_whole_range_and_near_one() {
    let mut worst = 0.0_f64;
    let mut x = f32::MIN_POSITIVE;
    while x < 1e38 {
        worst = worst.max(ulps(ln_f32(x).abs(), f64::from(x).ln().abs()));
        x *= 1.000_37;
    }
    for steps in 1..300_000 {
        let x = 1.0 - steps as f32 * 1e-6;
        worst = worst.max(ulps(ln_f32(x).abs(), f64::from(x).ln().abs()));
    }
    assert!(worst < 1.0, "worst error {worst} ulp");
}

#[test]
fn ln_of_the_edges() {
    assert_eq!(ln_f32(1.0), 0.0);
    let lowest = ln_f32(f32::MIN_POSITIVE);
    assert!((lowest + 126.0 * std::f32::consts::LN_2).abs() < 1e-5);
    assert_eq!([ln_f32(0.0), ln_f32(-1.0), ln_f32(1e-40)], [lowest; 3]);
    assert!(ln_f32(f32::NAN).is_nan());
}

#[test]
fn sigmoid_at_both_ends_and_in_the_middle() {
    assert_eq!(sigmoid_f32(0.0), 0.5);
    assert_eq!(sigmoid_f32(200.0), 1.0);
    assert_eq!(sigmoid_f32(-200.0), 0.0);
    for x in [-20.0_f32, -3.5, -0.01, 0.7, 9.0] {
        assert!(ulps(sigmoid_f32(x), 1.0 / (1.0 + f64::from(-x).exp())) < 2.5, "at {x}");
    }
}

/// Values without structure, the same every time.
fn values(len: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 7919 + 13) % 2003) as f32 / 300.0 - 3.0).collect()
}

#[test]
fn reductions_agree_with_f64_at_every_length() {
    for len in [0, 1, 2, 15, 16, 31, 32, 33, 63, 64, 65, 1023, 1024, 1025, 5000] {
        let x = values(len);
        let y: Vec<f32> = values(len + 5)[5..].to_vec();
        let wide = |x: &[f32]| x.iter().copied().map(f64::from).collect::<Vec<_>>();
        let (wx, wy) = (wide(&x), wide(&y));
        let close = |found: f64, exact: f64, size: f64, what: &str| {
            assert!((found - exact).abs() <= 3e-6 * size + 1e-30, "{what} of {len}");
        };
        let size: f64 = wx.iter().map(|x| x.abs()).sum();
        close(sum(&x), wx.iter().sum(), size, "sum");
        let products: Vec<f64> = wx.iter().zip(&wy).map(|(a, b)| a * b).collect();
        close(dot(&x, &y), products.iter().sum(), products.iter().map(|p| p.abs()).sum(), "dot");
        let exps: f64 = wx.iter().map(|x| (0.5 * x - 2.0).exp()).sum();
        close(sum_exp(&x, 0.5, 2.0), exps, exps, "sum_exp");
        let mut inplace = x.clone();
        close(exp_in_place(&mut inplace, 0.5, 2.0), exps, exps, "exp_in_place");
        for (found, x) in inplace.iter().zip(&wx) {
            close(f64::from(*found), (0.5 * x - 2.0).exp(), (0.5 * x - 2.0).exp(), "exp");
        }
        assert_eq!(max(&x), x.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        let mut acc = y.clone();
        add_assign(&mut acc, &x);
        scale_in_place(&mut acc, -3.0);
        assert!(acc.iter().zip(x.iter().zip(&y)).all(|(a, (x, y))| *a == (x + y) * -3.0));
    }
}

#[test]
fn the_largest_value_is_found_at_every_place() {
    for len in [1, 7, 32, 33, 70] {
        for at in 0..len {
            let mut x = vec![-2.0; len];
            x[at] = -1.0;
            assert_eq!(max(&x), -1.0);
        }
    }
}

/// Every exponent with mantissas around every rounding decision, both signs, and the specials.
fn hard_floats() -> Vec<f32> {
    let mut all = vec![f32::INFINITY, f32::NAN, 65_504.0, 65_519.99, 65_520.0, 65_536.0];
    for exponent in 0..255_u32 {
        for mantissa in [
            0, 1, 0xfff, 0x1000, 0x1001, 0x1fff, 0x2fff, 0x3000, 0x3001, 0x7fff, 0x8000, 0x8001,
            0x1_8000, 0x1_7fff, 0x1_8001, 0x40_0000, 0x7f_e000, 0x7f_efff, 0x7f_f000, 0x7f_ffff,
        ] {
            all.push(f32::from_bits(exponent << 23 | mantissa));
        }
    }
    let negative: Vec<f32> = all.iter().map(|x| -x).collect();
    all.extend(negative);
    all
}

#[test]
fn rounding_to_sixteen_bits_equals_the_half_crate() {
    let from = hard_floats();
    let mut to = vec![0.0; from.len()];
    let same = |found: f32, wanted: f32| {
        found.to_bits() == wanted.to_bits() || found.is_nan() && wanted.is_nan()
    };
    round_to_bf16(&from, &mut to);
    for (x, found) in from.iter().zip(&to) {
        assert!(same(*found, bf16::from_f32(*x).to_f32()), "bf16 of {x:e} is not {found:e}");
    }
    round_to_f16(&from, &mut to);
    for (x, found) in from.iter().zip(&to) {
        assert!(same(*found, f16::from_f32(*x).to_f32()), "f16 of {x:e} is not {found:e}");
    }
}

#[test]
fn every_sixteen_bit_value_is_widened_exactly() {
    let mut to = vec![0.0; 1 << 16];
    let all: Vec<bf16> = (0..=u16::MAX).map(bf16::from_bits).collect();
    convert(Floats::Bf16(&all), Precision::Bf16, &mut to);
    for (from, to) in all.iter().zip(&to) {
        assert!(from.is_nan() && to.is_nan() || from.to_f32().to_bits() == to.to_bits());
    }
    let all: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).collect();
    convert(Floats::F16(&all), Precision::F32, &mut to);
    for (from, to) in all.iter().zip(&to) {
        assert!(from.is_nan() && to.is_nan() || from.to_f32().to_bits() == to.to_bits(), "{from}");
    }
}

#[test]
fn one_sixteen_bit_type_becomes_the_other() {
    let mut to = [0.0; 2];
    convert(Floats::Bf16(&[bf16::MAX, bf16::ONE]), Precision::F16, &mut to);
    assert_eq!(to, [f32::INFINITY, 1.0]);
    // 1 + 2^-10 is a half; bfloat16 has seven bits.
    convert(Floats::F16(&[f16::from_bits(0x3c01), f16::MAX]), Precision::Bf16, &mut to);
    assert_eq!(to, [1.0, 65_536.0]);
}
