//! AdamW and clipping.

use half::bf16;
use kernels::adamw::{Scalars, adamw, clip, shares};
use kernels::emulation::Memory;

use super::elements::{all, emulated};
use crate::ops::adamw::clip_scale;
use crate::ops::testing::{error, random};

/// The formula of one element, in `f64`: parameter, first and second moment after the step.
fn exact([p, m, v, g]: [f32; 4], scale: f64, s: &Scalars) -> [f64; 3] {
    let [p, m, v, g] = [p, m, v, g].map(f64::from);
    let (g, of) = (g * scale, |x: f32| f64::from(x));
    let m = m + of(s.one_minus_beta1) * (g - m);
    let v = of(s.beta2) * v + of(s.one_minus_beta2) * g * g;
    let root = v.sqrt() / of(s.root_correction2) + of(s.epsilon);
    [p * of(s.decay) - of(s.step_size) * m / root, m, v]
}

#[test]
fn clipping_and_a_step_agree_with_f64() {
    if !emulated("clipping_and_a_step_agree_with_f64") {
        return;
    }
    let scalars = Scalars {
        decay: 0.999,
        one_minus_beta1: 0.1,
        beta2: 0.98,
        one_minus_beta2: 0.02,
        root_correction2: 0.3,
        epsilon: 1e-6,
        step_size: 0.01,
    };
    // Less than four, a tail behind fours, more than one block.
    for count in [1_usize, 3, 4, 1023, 1029, 5000] {
        for (max_norm, rounds) in [(1e6_f32, false), (0.5, true)] {
            let memory = &mut Memory::default();
            let [p, m, g] = [1, 2, 3].map(|seed| random(seed, count));
            let v: Vec<f32> = random(4, count).iter().map(|x| x * x).collect();
            let [at_p, at_m, at_v, at_g] =
                [("p", &p), ("m", &m), ("v", &v), ("g", &g)].map(|(name, x)| memory.of(name, x));
            let room = memory.unwritten::<f64>("room", shares(count as u32) as usize);
            let norm = memory.unwritten::<f32>("norm", 1);
            let scale = memory.unwritten::<f32>("scale", 1);
            let rounded = rounds.then(|| memory.unwritten::<bf16>("rounded", count));
            all(&clip([at_g, room, norm, scale], count as u32, max_norm), memory);
            let wanted = g.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
            let wanted_scale = clip_scale(wanted, f64::from(max_norm));
            assert!(error(&memory.floats(norm), &[wanted]) < 1e-7, "{count}");
            assert!(error(&memory.floats(scale), &[wanted_scale]) < 1e-7, "{count}");

            let at = [at_p, at_m, at_v, at_g, scale];
            all(&[adamw(at, rounded, count as u32, &scalars)], memory);
            let each = |i: usize| exact([p[i], m[i], v[i], g[i]], wanted_scale, &scalars);
            let exact: Vec<[f64; 3]> = (0..count).map(each).collect();
            for (part, at) in [at_p, at_m, at_v].into_iter().enumerate() {
                let exact: Vec<f64> = exact.iter().map(|of| of[part]).collect();
                let found = error(&memory.floats(at), &exact);
                assert!(found < 3e-7, "{count}, {part}: {found}");
            }
            if let Some(rounded) = rounded {
                let new = memory.floats(at_p);
                let wanted: Vec<f32> = new.iter().map(|&x| bf16::from_f32(x).to_f32()).collect();
                assert_eq!(memory.floats(rounded), wanted);
            }
        }
    }
}
