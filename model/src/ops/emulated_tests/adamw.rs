//! AdamW and clipping.

use half::bf16;
use kernels::adamw::{Clipping, NOWHERE, Scalars, adamw, clip, halt, shares};
use kernels::emulation::{Id, Memory};

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
            let of = clipping(memory, at_g, count as u32);
            let Clipping { norm, scale, outcome, .. } = of;
            let rounded = rounds.then(|| memory.unwritten::<bf16>("rounded", count));
            all(&clip(of, count as u32, max_norm), memory);
            let wanted = g.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
            let wanted_scale = clip_scale(wanted, f64::from(max_norm));
            assert!((memory.doubles(norm)[0] / wanted - 1.0).abs() < 1e-12, "{count}");
            assert_eq!(memory.words(outcome), [0, NOWHERE]);
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

/// Buffers of a clipping of these gradients, nothing halted.
fn clipping(memory: &mut Memory, gradients: Id, count: u32) -> Clipping<Id> {
    let shares = shares(count) as usize;
    Clipping {
        gradients,
        shares: memory.unwritten::<f64>("shares", shares),
        places: memory.unwritten::<u32>("places", shares),
        halted: memory.of("halted", &[0_u32]),
        norm: memory.unwritten::<f64>("norm", 1),
        outcome: memory.unwritten::<u32>("outcome", 2),
        scale: memory.unwritten::<f32>("scale", 1),
    }
}

#[test]
fn what_is_not_finite_is_found_and_halts_every_step_behind_it() {
    if !emulated("what_is_not_finite_is_found_and_halts_every_step_behind_it") {
        return;
    }
    for broken in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for places in [&[0_usize][..], &[299], &[4999, 700, 1300]] {
            let memory = &mut Memory::default();
            let mut g = random(5, 5000);
            places.iter().for_each(|&place| g[place] = broken);
            let sound = memory.of("sound", &random(6, 5000));
            let at_g = memory.of("g", &g);
            let of = clipping(memory, at_g, 5000);
            all(&clip(of, 5000, 1.0), memory);
            let first = *places.iter().min().unwrap() as u32;
            assert_eq!(memory.words(of.outcome), [1, first]);
            assert!(memory.floats(of.scale)[0] < 0.0 && !memory.doubles(of.norm)[0].is_finite());
            // Others behind them, sound: no step either.
            let next = Clipping { halted: of.halted, ..clipping(memory, sound, 5000) };
            all(&clip(next, 5000, 1.0), memory);
            assert_eq!(memory.words(next.outcome), [1, NOWHERE]);
            assert!(memory.floats(next.scale)[0] < 0.0 && memory.doubles(next.norm)[0] > 0.0);
        }
    }
    // Every loss is looked at.
    for count in [1_usize, 31, 512, 1201] {
        for broken in [None, Some(0), Some(count / 2), Some(count - 1)] {
            let memory = &mut Memory::default();
            let mut losses = random(7, count);
            broken.into_iter().for_each(|place| losses[place] = f32::NAN);
            let losses = memory.of("losses", &losses);
            let halted = memory.of("halted", &[0_u32]);
            all(&[halt([losses, halted], count as u32)], memory);
            assert_eq!(memory.words(halted), [u32::from(broken.is_some())], "{count}");
        }
    }
}
