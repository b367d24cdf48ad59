//! A fingerprint changes with every number and with nothing else.

use std::fs;

use candle_core::{DType, Device};
use serde_json::json;

use super::*;
use crate::save::save_model;
use crate::test_support::config;
use crate::weights::Weights;

fn fingerprint(changes: serde_json::Value, weights: &Weights, dtype: DType) -> Fingerprint {
    let (dir, config) = (tempfile::tempdir().unwrap(), config(changes));
    save_model(dir.path(), &config, weights, dtype).unwrap();
    of_place(dir.path(), &config).unwrap()
}

#[test]
fn it_depends_on_numbers_and_configuration_and_not_on_the_rest() {
    let weights = Weights::random(&config(json!({})), 3, &Device::Cpu).unwrap();
    let plain = fingerprint(json!({}), &weights, DType::F32);
    let same = json!({"initializer_range": 0.5, "transformers_version": "4.51.0"});
    assert_eq!(fingerprint(same, &weights, DType::F32), plain);
    let stretched = json!({"rope_scaling": {"rope_type": "linear", "factor": 2.0}});
    for changes in [
        json!({"rms_norm_eps": 1e-5}),
        json!({"rope_theta": 2.0, "rope_parameters": null}),
        stretched,
    ] {
        assert_ne!(fingerprint(changes.clone(), &weights, DType::F32), plain, "{changes}");
    }
    assert_ne!(fingerprint(json!({}), &weights, DType::BF16), plain);
    let other = Weights::random(&config(json!({})), 4, &Device::Cpu).unwrap();
    assert_ne!(fingerprint(json!({}), &other, DType::F32), plain);
}

#[test]
fn it_changes_with_one_bit_of_the_last_byte_and_not_with_the_cut_into_shards() {
    let (dir, config) = (tempfile::tempdir().unwrap(), config(json!({})));
    let weights = Weights::random(&config, 3, &Device::Cpu).unwrap();
    save_model(dir.path(), &config, &weights, DType::F32).unwrap();
    let whole = of_place(dir.path(), &config).unwrap();
    let path = dir.path().join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, bytes).unwrap();
    assert_ne!(of_place(dir.path(), &config).unwrap(), whole);

    let shards = tempfile::tempdir().unwrap();
    crate::save::save_weights(shards.path(), &weights, DType::F32, 5000).unwrap();
    assert_eq!(of_place(shards.path(), &config).unwrap(), whole);
    assert!(of_place(Path::new("/nowhere"), &config).is_err());
}
