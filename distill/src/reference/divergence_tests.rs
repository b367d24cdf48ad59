//! The divergences against PyTorch, against finite differences of themselves, and at their limits.

use proptest::prelude::*;

use crate::reference::{
    BetaOutside, Divergence, Tail, divergence_bucket, divergence_full, divergence_top_k, kl_top_k,
};
use crate::signal::TopK;
use Divergence::{ForwardKl, Jsd, Mixture, ReverseKl};

fn assert_close(found: &[f64], wanted: &[f64], tolerance: f64, what: &str) {
    assert_eq!(found.len(), wanted.len());
    for (j, (a, b)) in found.iter().zip(wanted).enumerate() {
        assert!((a - b).abs() <= tolerance, "{what}: {j}: {a} against {b}");
    }
}

/// A divergence, its value and gradient over all five classes, and over the two most probable for the
/// teacher with the rest in a bucket.
type Golden = (Divergence, [(f64, [f64; 5]); 2]);

/// PyTorch 2, float64:
///
/// ```python
/// kl = lambda a, b: F.kl_div(b, a, reduction="sum", log_target=True)   # KL(a || b) of logs
/// def d(lp, lq, kind, b):
///     if kind == "forward": return kl(lp, lq)
///     if kind == "reverse": return kl(lq, lp)
///     if kind == "mixture": return (1 - b) * kl(lp, lq) + b * kl(lq, lp)
///     of_q, of_p = lq + torch.log1p(torch.tensor(-b)), lp + torch.log(torch.tensor(b))
///     lm = torch.logsumexp(torch.stack([of_q, of_p]), 0)
///     return b * kl(lp, lm) + (1 - b) * kl(lq, lm)
/// ids = torch.topk(y, 2).indices
/// def bucket(x):
///     rest = torch.ones(5, dtype=torch.bool); rest[ids] = False
///     l = torch.log_softmax(x / T, 0)
///     return torch.cat([l[ids], torch.logsumexp(l[rest], 0)[None]])
/// for outcomes in (lambda x: torch.log_softmax(x / T, 0), bucket):
///     z = torch.tensor(Z, requires_grad=True)
///     v = d(outcomes(y), outcomes(z), kind, b); v.backward(); print(v.item(), list(z.grad))
/// ```
const Z: [f64; 5] = [0.5, -1.0, 2.0, 0.25, -3.0];
const Y: [f64; 5] = [1.5, 0.75, -0.5, 3.0, -2.0];
const T: f64 = 2.0;
const IDS: [u32; 2] = [3, 0];
#[rustfmt::skip]
const GOLDEN: [Golden; 6] = [
    (ForwardKl, [
        (0.404_085_530_924_533_03, [-0.007_421_980_576_771_722, -0.028_232_720_130_122_332, 0.185_523_705_321_766_96, -0.148_579_257_781_834_6, -0.001_289_746_833_038_233_5]),
        (0.263_805_109_968_024, [-0.007_421_980_576_771_722, 0.026_668_845_411_701_93, 0.119_521_473_000_159_97, -0.148_579_257_781_834_6, 0.009_810_919_946_744_488]),
    ]),
    (ReverseKl, [
        (0.526_435_678_917_453_7, [-0.063_836_404_163_118_16, -0.049_219_107_117_379_6, 0.263_592_638_140_590_75, -0.139_444_023_172_971_7, -0.011_093_103_687_121_457]),
        (0.248_997_279_506_385_1, [-0.033_976_303_750_196_27, 0.025_141_834_052_978_294, 0.112_677_882_883_486_15, -0.113_092_577_047_703_12, 0.009_249_163_861_434_796]),
    ]),
    (Jsd { beta: 0.1 }, [
        (0.036_483_524_110_358_295, [-0.001_039_806_675_849_013_6, -0.002_649_622_134_102_84, 0.016_624_206_187_924_262, -0.012_754_086_071_484_03, -0.000_180_691_306_488_379_38]),
        (0.023_330_671_524_278_063, [-0.000_952_439_768_450_003_1, 0.002_329_988_064_581_002_3, 0.010_442_282_043_050_817, -0.012_676_985_046_316_008, 0.000_857_154_707_134_189_7]),
    ]),
    (Jsd { beta: 0.5 }, [
        (0.106_970_215_160_408_1, [-0.006_935_378_271_666_083, -0.008_643_054_741_641_228, 0.048_735_268_567_202_19, -0.031_951_647_522_306_934, -0.001_205_188_031_587_947_6]),
        (0.062_212_544_120_822_395, [-0.005_261_243_195_061_800_6, 0.006_109_078_238_411_048, 0.027_378_989_170_926_907, -0.030_474_228_502_695_43, 0.002_247_404_288_419_276]),
    ]),
    (Jsd { beta: 0.9 }, [
        (0.044_459_328_025_616_13, [-0.004_717_313_691_433_226, -0.003_982_854_615_367_817_5, 0.021_457_419_901_959_693, -0.011_937_505_392_505_527, -0.000_819_746_202_653_127_5]),
        (0.022_308_335_522_854_28, [-0.002_801_667_220_586_845_5, 0.002_230_697_958_396_264, 0.009_997_294_659_369_97, -0.010_246_953_315_536_484, 0.000_820_627_918_357_095_1]),
    ]),
    (Mixture { beta: 0.3 }, [
        (0.440_790_575_322_409_2, [-0.024_346_307_652_675_654, -0.034_528_636_226_299_51, 0.208_944_385_167_414_07, -0.145_838_687_399_175_71, -0.004_230_753_889_263_2]),
        (0.259_362_760_829_532_3, [-0.015_388_277_528_799_092, 0.026_210_742_004_084_84, 0.117_468_395_965_157_83, -0.137_933_253_561_595_14, 0.009_642_393_121_151_581]),
    ]),
];

#[test]
fn values_and_gradients_are_those_of_pytorch() {
    let log_p = super::super::log_softmax(&Y, T);
    let of_ids = IDS.map(|id| log_p[id as usize]);
    let log_rest = (log_p[1].exp() + log_p[2].exp() + log_p[4].exp()).ln();
    for (divergence, [full, bucket]) in GOLDEN {
        let found = [
            divergence_full(&Z, &Y, T, divergence),
            divergence_bucket(&Z, &IDS, &of_ids, log_rest, T, divergence),
        ];
        for (found, (value, gradient)) in found.iter().zip([full, bucket]) {
            assert_close(&[found.value], &[value], 1e-14, "value");
            assert_close(&found.gradient, &gradient, 1e-14, &divergence.to_string());
        }
    }
}

#[test]
fn two_outcomes_by_hand() {
    // Teacher (1/2, 1/2), student (1, 0): log 2, infinite the other way round, and m = (3/4, 1/4).
    let (half, none) = (0.5f64.ln(), f64::NEG_INFINITY);
    let reverse = ReverseKl.over(&[half, half], &[0.0, none]);
    assert_close(&[reverse.value], &[2f64.ln()], 1e-15, "reverse");
    assert_eq!(reverse.gradient, [0.0, 0.0]);
    assert_eq!(ForwardKl.over(&[half, half], &[0.0, none]).value, f64::INFINITY);
    let jsd = Jsd { beta: 0.5 }.over(&[half, half], &[0.0, none]);
    let of_teacher = 0.5 * (2f64 / 3.0).ln() + 0.5 * 2f64.ln();
    assert_close(&[jsd.value], &[0.5 * of_teacher + 0.5 * (4f64 / 3.0).ln()], 1e-15, "jsd");
    assert_eq!(jsd.gradient, [0.0, 0.0]);

    // The student keeps what the teacher rules out.
    let reverse = ReverseKl.over(&[0.0, none], &[half, half]);
    assert_eq!(reverse.value, f64::INFINITY);
    assert!(reverse.gradient.iter().all(|g| !g.is_finite()), "{reverse:?}");
    let found = Mixture { beta: 0.1 }.over(&[0.0, none], &[half, half]);
    assert_eq!(found.value, f64::INFINITY);
    let forward = ForwardKl.over(&[0.0, none], &[half, half]);
    assert_eq!((forward.value, forward.gradient), (2f64.ln(), vec![-0.5, 0.5]));
    // q log(q / m) is 1/2 log 2/3 and 1/2 log 2, their sum the mean: both an end of its slope.
    let jsd = Jsd { beta: 0.5 }.over(&[0.0, none], &[half, half]);
    assert_close(&[jsd.value], &[0.5 * (4f64 / 3.0).ln() + 0.5 * of_teacher], 1e-15, "jsd");
    let slope = 0.5 * 0.5 * (2f64.ln() - of_teacher);
    assert_close(&jsd.gradient, &[-slope, slope], 1e-15, "jsd");
}

#[test]
fn an_outcome_that_neither_knows_takes_no_part() {
    let none = f64::NEG_INFINITY;
    for divergence in [ForwardKl, ReverseKl, Jsd { beta: 0.3 }, Mixture { beta: 0.3 }] {
        let found = divergence_full(&[0.0, 1.0, none], &[0.5, 0.0, none], 1.0, divergence);
        let without = divergence_full(&[0.0, 1.0], &[0.5, 0.0], 1.0, divergence);
        assert!(found.value > 0.0);
        assert_eq!((found.value, &found.gradient[..2]), (without.value, &without.gradient[..]));
        assert_eq!(found.gradient[2], 0.0);
        let nan = divergence_full(&[0.0, f64::NAN, 1.0], &[0.5, 0.0, 0.0], 1.0, divergence);
        assert!(nan.value.is_nan() && nan.gradient.iter().all(|g| g.is_nan()), "{divergence}");
    }
}

#[test]
fn what_is_below_the_smallest_number_is_still_known_by_its_logarithm() {
    // The teacher's rest is e^-2000, the student's e^-1 or so: 2000 of the value are there.
    let mut signal = TopK::new(1);
    signal.push_exact(&[2000.0, 0.0, 0.0], 1.0);
    let z = [0.0, 0.0, 0.0];
    let found = divergence_top_k(&z, &signal, 0, 1.0, ReverseKl);
    let wanted = (1f64 / 3.0) * (1f64 / 3.0).ln() + (2f64 / 3.0) * ((1f64 / 3.0).ln() + 2000.0);
    assert_close(&[found.value], &[wanted], 1e-3, "the rest is rounded to float32");
    assert!(found.gradient.iter().all(|g| g.is_finite()));
    // log(q_rest) = -9000: nothing to push away, and no division by it.
    let found = divergence_bucket(
        &[9000.0, 0.0, 1.0],
        &[0],
        &[0.5f64.ln()],
        0.5f64.ln(),
        1.0,
        Jsd { beta: 0.5 },
    );
    assert!(found.value.is_finite());
    assert_eq!(found.gradient, [0.0, 0.0, 0.0]);
}

#[test]
fn beta_is_a_share_and_its_ends_are_the_two_divergences() {
    for beta in [0.0, 0.25, 1.0] {
        for divergence in [Jsd { beta }, Mixture { beta }] {
            assert_eq!(divergence.checked(), Ok(divergence));
        }
    }
    for beta in [-0.1, 1.1, f64::INFINITY] {
        for divergence in [Jsd { beta }, Mixture { beta }] {
            assert_eq!(divergence.checked(), Err(BetaOutside { found: beta }));
        }
    }
    let error = Jsd { beta: f64::NAN }.checked().unwrap_err().to_string();
    assert_eq!(error, "beta of the divergence is NaN: it must lie in 0 to 1");
    for (beta, wanted) in [(0.0, ForwardKl), (1.0, ReverseKl)] {
        for divergence in [Jsd { beta }, Mixture { beta }] {
            let full = |divergence| divergence_full(&Z, &Y, T, divergence);
            assert_eq!(full(divergence), full(wanted), "{divergence}");
            assert_eq!(divergence.simplest(), wanted);
        }
    }
    assert_eq!(Divergence::default(), ForwardKl);
    // Near an end jsd is beta, or 1 - beta, times the divergence it tends to.
    let value = |divergence| divergence_full(&Z, &Y, T, divergence).value;
    let near = 1e-7;
    assert_close(&[value(Jsd { beta: near }) / near], &[value(ForwardKl)], 1e-6, "at 0");
    assert_close(&[value(Jsd { beta: 1.0 - near }) / near], &[value(ReverseKl)], 1e-6, "at 1");
}

/// A position: student logits, teacher logits, k, T and the divergence.
type Position = (Vec<f64>, Vec<f64>, usize, f64, Divergence);

fn position() -> impl Strategy<Value = Position> {
    let spread = prop_oneof![Just(0.01), Just(1.0), Just(10.0), Just(300.0), Just(1e4)];
    (2usize..40, spread.clone(), spread).prop_flat_map(|(classes, spread_z, spread_y)| {
        let logits = |spread: f64| proptest::collection::vec(-spread..=spread, classes);
        let temperature = prop_oneof![Just(0.5), Just(1.0), Just(2.0), Just(5.0), 0.5..20.0f64];
        (logits(spread_z), logits(spread_y), 1..=classes, temperature, divergence())
    })
}

fn divergence() -> impl Strategy<Value = Divergence> {
    let beta = prop_oneof![Just(0.0), Just(1.0), Just(1e-6), 0.0..=1.0f64];
    prop_oneof![
        Just(ForwardKl),
        Just(ReverseKl),
        beta.clone().prop_map(|beta| Jsd { beta }),
        beta.prop_map(|beta| Mixture { beta }),
    ]
}

/// The k most probable for the teacher, their log-probabilities and that of the rest, in float64.
fn top(y: &[f64], k: usize, temperature: f64) -> (Vec<u32>, Vec<f64>, f64) {
    let log_p = super::super::log_softmax(y, temperature);
    let mut order: Vec<u32> = (0..y.len() as u32).collect();
    order.sort_by(|&a, &b| y[b as usize].total_cmp(&y[a as usize]));
    let rest = order.split_off(k);
    let log_rest = crate::signal::log_sum_exp(rest.iter().map(|&id| log_p[id as usize]));
    let log_p = order.iter().map(|&id| log_p[id as usize]).collect();
    (order, log_p, log_rest)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn every_value_is_finite_not_negative_and_has_the_gradient_it_says(
        (z, y, k, t, divergence) in position(),
    ) {
        let (ids, log_p, log_rest) = top(&y, k, t);
        let full = |z: &[f64]| divergence_full(z, &y, t, divergence);
        let bucket = |z: &[f64]| divergence_bucket(z, &ids, &log_p, log_rest, t, divergence);
        for (name, loss_of) in [("full", &full as &dyn Fn(&[f64]) -> _), ("bucket", &bucket)] {
            let loss: crate::reference::Loss = loss_of(&z);
            prop_assert!(loss.value.is_finite() && loss.value > -1e-12, "{name} {}", loss.value);
            let (step, size) = (1e-4, z.iter().chain(&y).fold(1.0f64, |m, z| m.max(z.abs())));
            // Truncation; and the rounding of u = z / T in values of up to that size.
            let tolerance = 1e-7 * (1.0 + size / t) / t.min(1.0).powi(3) + 2e-11 * size / t;
            for (j, g) in loss.gradient.iter().enumerate() {
                let moved = |by: f64| {
                    let mut z = z.clone();
                    z[j] += by;
                    loss_of(&z).value
                };
                let difference = (moved(step) - moved(-step)) / (2.0 * step);
                prop_assert!((g - difference).abs() < tolerance,
                    "{name} {divergence} {j}: {g} against {difference}");
            }
            // Adding one number to all logits changes nothing.
            let sum: f64 = loss.gradient.iter().sum();
            prop_assert!(sum.abs() < 1e-12 * (1.0 + size) / t, "{name}: {sum}");
        }
    }

    #[test]
    fn a_bucket_is_at_most_the_whole_and_all_of_it_when_it_is_empty(
        (z, y, k, t, divergence) in position(),
    ) {
        let bucket_of = |k: usize| {
            let (ids, log_p, log_rest) = top(&y, k, t);
            divergence_bucket(&z, &ids, &log_p, log_rest, t, divergence)
        };
        let full = divergence_full(&z, &y, t, divergence);
        let rounding = 1e-12 * (1.0 + full.value);
        prop_assert!(bucket_of(k).value <= full.value + rounding);
        let whole = bucket_of(y.len());
        prop_assert!((whole.value - full.value).abs() <= rounding);
        for (a, b) in whole.gradient.iter().zip(&full.gradient) {
            prop_assert!((a - b).abs() <= rounding, "{a} {b}");
        }
    }

    #[test]
    fn jsd_is_the_same_seen_from_the_other_side_and_bounded(
        (z, y, _, t, _) in position(), beta in 0.001..0.999f64,
    ) {
        let value = |z: &[f64], y: &[f64], beta| divergence_full(z, y, t, Jsd { beta }).value;
        prop_assert!((value(&z, &y, 0.5) - value(&y, &z, 0.5)).abs() < 1e-12);
        prop_assert!((value(&z, &y, beta) - value(&y, &z, 1.0 - beta)).abs() < 1e-12);
        // The entropy of which side an outcome came from.
        let most = -beta * beta.ln() - (1.0 - beta) * (1.0 - beta).ln();
        prop_assert!(value(&z, &y, beta) <= most + 1e-12);
        // Reverse is forward with the sides changed.
        let of = |z: &[f64], y: &[f64], divergence| divergence_full(z, y, t, divergence).value;
        let (reverse, forward) = (of(&z, &y, ReverseKl), of(&y, &z, ForwardKl));
        prop_assert!((reverse - forward).abs() <= 1e-12 * (1.0 + forward));
    }

    #[test]
    fn a_student_like_its_teacher_is_at_no_distance_of_any_kind(
        (_, y, k, t, divergence) in position(),
    ) {
        let full = divergence_full(&y, &y, t, divergence);
        prop_assert!(full.value.abs() < 1e-12);
        prop_assert!(full.gradient.iter().all(|g| g.abs() < 1e-12));
        let (ids, log_p, log_rest) = top(&y, k, t);
        prop_assert!(divergence_bucket(&y, &ids, &log_p, log_rest, t, divergence).value.abs() < 1e-11);
    }

    #[test]
    fn the_forward_divergence_of_a_signal_is_the_one_with_a_bucket(
        (z, y, k, t, _) in position(),
    ) {
        let mut signal = TopK::new(k);
        signal.push_exact(&y, t);
        let bucket = kl_top_k(&z, &signal, 0, t, Tail::Bucket);
        let found = divergence_top_k(&z, &signal, 0, t, ForwardKl);
        prop_assert!((found.value - bucket.value).abs() <= 1e-11 * (1.0 + bucket.value));
        for (a, b) in found.gradient.iter().zip(&bucket.gradient) {
            prop_assert!((a - b).abs() <= 1e-12);
        }
    }
}
