//! How far numbers are from golden ones.

/// Largest difference over the largest golden value; infinite when the lengths differ.
pub(super) fn largest_difference(ours: &[f32], golden: &[f32]) -> f64 {
    if ours.len() != golden.len() {
        return f64::INFINITY;
    }
    let mut difference = 0f64;
    for (a, b) in ours.iter().zip(golden) {
        let d = (f64::from(*a) - f64::from(*b)).abs();
        // `max` would drop a NaN.
        difference = if d.is_nan() { f64::INFINITY } else { difference.max(d) };
        if difference.is_infinite() {
            return difference;
        }
    }
    let largest = golden.iter().fold(0f64, |m, v| m.max(f64::from(v.abs())));
    difference / largest
}

/// Norm of the difference over the golden norm; infinite when the lengths differ.
pub(super) fn norm_of_difference(ours: &[f32], golden: &[f32]) -> f64 {
    if ours.len() != golden.len() {
        return f64::INFINITY;
    }
    let square = |v: f64| v * v;
    let pairs = ours.iter().zip(golden);
    let difference: f64 = pairs.map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
    let norm: f64 = golden.iter().map(|v| square(f64::from(*v))).sum();
    if norm == 0.0 { difference.sqrt() } else { (difference / norm).sqrt() }
}
