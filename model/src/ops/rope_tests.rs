//! Tests of the frequencies against values printed by transformers 5.23, and of the tables.

use super::*;

fn agrees(found: &[f64], wanted: &[f64]) {
    assert_eq!(found.len(), wanted.len());
    for (found, wanted) in found.iter().zip(wanted) {
        // The wanted values were computed in f32.
        assert!((found / wanted - 1.0).abs() < 2e-6, "{found} is not {wanted}");
    }
}

#[test]
fn linear_scaling_as_in_transformers() {
    let (frequencies, factor) = RopeScaling::Linear { factor: 4.0 }.frequencies(8, 10_000.0);
    agrees(&frequencies, &[2.5e-1, 2.500000037e-2, 2.499999944e-3, 2.500000119e-4]);
    assert_eq!(factor, 1.0);
}

#[test]
fn yarn_as_in_transformers() {
    let yarn = RopeScaling::Yarn {
        factor: 4.0,
        original_max_positions: 32_768.0,
        attention_factor: None,
        mscale: None,
        mscale_all_dim: None,
        beta_fast: 32.0,
        beta_slow: 1.0,
        truncate: true,
    };
    let (frequencies, factor) = yarn.frequencies(16, 1e6);
    let wanted = [
        1.0,
        1.778279394e-1,
        3.162277862e-2,
        4.217559937e-3,
        5.000000237e-4,
        4.445698505e-5,
        7.905693565e-6,
        1.405853368e-6,
    ];
    agrees(&frequencies, &wanted);
    assert!((factor - 1.138_629_436_111_989).abs() < 1e-12);
}

#[test]
fn yarn_with_every_option_as_in_transformers() {
    let yarn = |attention_factor, mscale, beta_fast, beta_slow, truncate| RopeScaling::Yarn {
        factor: 8.0,
        original_max_positions: 256.0,
        attention_factor,
        mscale,
        mscale_all_dim: Some(1.3),
        beta_fast,
        beta_slow,
        truncate,
    };
    let (frequencies, factor) = yarn(None, Some(0.7), 16.0, 2.0, false).frequencies(16, 1e4);
    let wanted = [
        1.0,
        2.874085903e-1,
        4.244179651e-2,
        3.952847328e-3,
        1.249999972e-3,
        3.952847328e-4,
        1.250000059e-4,
        3.952847328e-5,
    ];
    agrees(&frequencies, &wanted);
    assert!((factor - 0.901_783_986_978_712_3).abs() < 1e-12);

    let (frequencies, factor) = yarn(Some(1.25), Some(0.7), 32.0, 1.0, true).frequencies(16, 1e4);
    let wanted = [
        1.0,
        2.470529377e-1,
        5.625000224e-2,
        1.087033004e-2,
        1.249999972e-3,
        3.952847328e-4,
        1.250000059e-4,
        3.952847328e-5,
    ];
    agrees(&frequencies, &wanted);
    assert_eq!(factor, 1.25);
    // One of the two scales alone, or a zero, does not count.
    for mscale in [None, Some(0.0)] {
        let (_, factor) = yarn(None, mscale, 32.0, 1.0, true).frequencies(16, 1e4);
        assert!((factor - (0.1 * 8.0_f64.ln() + 1.0)).abs() < 1e-12);
    }
}

#[test]
fn llama3_as_in_transformers() {
    let llama3 = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_positions: 8192.0,
    };
    let (frequencies, factor) = llama3.frequencies(32, 500_000.0);
    let wanted = [
        1.0,
        4.403666258e-1,
        1.939227581e-1,
        8.539710194e-2,
        3.760603070e-2,
        1.656044088e-2,
        7.292665076e-3,
        3.211446106e-3,
        5.248460220e-4,
        7.784655463e-5,
        3.428102355e-5,
        1.509621779e-5,
        6.647869668e-6,
        2.927499736e-6,
        1.289173156e-6,
        5.677088097e-7,
    ];
    agrees(&frequencies, &wanted);
    assert_eq!(factor, 1.0);
}

#[test]
fn tables_hold_the_angle_of_every_position_and_pair() {
    let tables = RopeTables::new(4, 100.0, &RopeScaling::Default, 3).unwrap();
    assert_eq!((tables.half(), tables.positions()), (2, 3));
    for (found, angle) in tables.cos().iter().zip([0.0, 0.0, 1.0, 0.1, 2.0, 0.2_f32]) {
        assert_eq!(*found, f64::from(angle).cos() as f32);
    }
    for (found, angle) in tables.sin().iter().zip([0.0, 0.0, 1.0, 0.1, 2.0, 0.2_f32]) {
        assert_eq!(*found, f64::from(angle).sin() as f32);
    }
}

#[test]
fn the_attention_factor_multiplies_both_tables() {
    let yarn = RopeScaling::Yarn {
        factor: 1.0,
        original_max_positions: 64.0,
        attention_factor: Some(2.0),
        mscale: None,
        mscale_all_dim: None,
        beta_fast: 32.0,
        beta_slow: 1.0,
        truncate: true,
    };
    let scaled = RopeTables::new(8, 1e4, &yarn, 5).unwrap();
    let plain = RopeTables::new(8, 1e4, &RopeScaling::Default, 5).unwrap();
    let twice = |x: &[f32]| x.iter().map(|x| 2.0 * x).collect::<Vec<_>>();
    assert_eq!(scaled.cos(), twice(plain.cos()));
    assert_eq!(scaled.sin(), twice(plain.sin()));
}

#[test]
fn values_that_give_no_frequencies_are_refused() {
    assert!(RopeTables::new(7, 1e4, &RopeScaling::Default, 4).is_err());
    assert!(RopeTables::new(0, 1e4, &RopeScaling::Default, 4).is_err());
    for theta in [0.0, -1.0, f64::NAN] {
        assert!(RopeTables::new(8, theta, &RopeScaling::Default, 4).is_err(), "{theta}");
    }
    for factor in [0.0, -2.0, f64::NAN] {
        let scaling = RopeScaling::Linear { factor };
        let message = RopeTables::new(8, 1e4, &scaling, 4).unwrap_err().to_string();
        assert!(message.contains("factor"), "{message}");
    }
}
