//! Configurations accepted, and each kind of refusal with what it must name.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::test_support::config_json;

fn parse(changes: Value) -> Result<Qwen3Config, ConfigError> {
    Qwen3Config::from_json(&config_json(changes))
}

#[test]
fn both_spellings_of_the_rotary_base_and_scaling_are_read() {
    let yarn = |factor| RopeScaling::Yarn {
        factor,
        original_max_positions: 32.0,
        attention_factor: None,
        mscale: None,
        mscale_all_dim: None,
        beta_fast: 32.0,
        beta_slow: 1.0,
        truncate: true,
    };
    let old = parse(json!({
        "rope_parameters": null,
        "rope_theta": 1000000,
        "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    }));
    let old = old.unwrap();
    assert_eq!((old.rope_theta, old.rope_scaling), (1e6, yarn(4.0)));
    let new = parse(json!({"rope_parameters": {
        "rope_type": "yarn", "rope_theta": 5e6, "factor": null,
        "original_max_position_embeddings": 32, "beta_fast": 0,
    }}));
    let new = new.unwrap();
    // Without a factor: 64 positions over the original 32.
    assert_eq!((new.rope_theta, new.rope_scaling), (5e6, yarn(2.0)));
    let none = parse(json!({"rope_parameters": null, "rope_scaling": null})).unwrap();
    assert_eq!((none.rope_theta, none.rope_scaling), (1e4, RopeScaling::Default));
    let dynamic = parse(json!({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}})).unwrap();
    assert_eq!(dynamic.rope_scaling, RopeScaling::Default);
}

#[test]
fn absent_fields_take_the_defaults_of_transformers() {
    let mut fields: Value = serde_json::from_str(&config_json(json!({}))).unwrap();
    let object = fields.as_object_mut().unwrap();
    for name in ["head_dim", "tie_word_embeddings", "attention_bias", "max_position_embeddings"] {
        object.remove(name);
    }
    object.insert("num_key_value_heads".to_owned(), Value::Null);
    let config = Qwen3Config::from_json(&fields.to_string()).unwrap();
    assert_eq!((config.head_dim, config.num_key_value_heads), (128, 4));
    assert_eq!((config.tie_word_embeddings, config.attention_bias), (false, false));
    assert_eq!(config.max_position_embeddings, 32_768);
    assert_eq!(parse(json!({"head_dim": null})).unwrap().head_dim, 6);
    assert_eq!(parse(json!({"eos_token_id": [3, 60]})).unwrap().eos_token_ids, [3, 60]);
    assert_eq!(parse(json!({"eos_token_id": 3})).unwrap().eos_token_ids, [3]);
    assert_eq!(parse(json!({"pad_token_id": 5})).unwrap().pad_token_id, Some(5));
}

#[test]
fn every_refusal_names_the_field_what_it_holds_and_what_is_accepted() {
    let cases = [
        (json!({"model_type": "llama"}), ["\"llama\"", "`qwen3`"]),
        (json!({"model_type": "qwen3_moe"}), ["\"qwen3_moe\"", "`qwen3`"]),
        (json!({"architectures": ["Qwen3ForSequenceClassification"]}), ["Sequence", "CausalLM`"]),
        (json!({"model_type": null, "architectures": null}), ["(absent)", "`qwen3`"]),
        (json!({"hidden_act": "gelu"}), ["`hidden_act` is \"gelu\"", "\"silu\""]),
        (json!({"use_sliding_window": true}), ["`use_sliding_window` is true", "false"]),
        (json!({"layer_types": ["sliding_attention"]}), ["sliding_attention", "full_attention"]),
        (json!({"attention_dropout": 0.1}), ["`attention_dropout` is 0.1", "0.0"]),
        (json!({"quantization_config": {"bits": 4}}), ["`quantization_config`", "bfloat16"]),
        (json!({"vocab_size": null}), ["`vocab_size`", "needed"]),
        (json!({"vocab_size": 0}), ["`vocab_size` is 0", "from 1"]),
        (json!({"vocab_size": -5}), ["`vocab_size` is -5", "from 1"]),
        (json!({"hidden_size": 1.5}), ["`hidden_size` is 1.5", "whole number"]),
        (json!({"hidden_size": "64"}), ["`hidden_size` is \"64\"", "whole number"]),
        (json!({"hidden_size": u64::MAX}), ["`hidden_size` is 18446744073709551615", "whole"]),
        (json!({"num_key_value_heads": 3}), ["`num_key_value_heads` is 3", "divisor"]),
        (json!({"head_dim": 7}), ["`head_dim` is 7", "even"]),
        (json!({"rms_norm_eps": 0.0}), ["`rms_norm_eps` is 0.0", "above 0"]),
        (json!({"rope_theta": -1, "rope_parameters": null}), ["`rope_theta` is -1", "above 0"]),
        (
            json!({"max_position_embeddings": (1 << 22) + 1}),
            ["`max_position_embeddings` is 4194305", "to 4194304"],
        ),
        (json!({"attention_bias": 1}), ["`attention_bias` is 1", "true or false"]),
        (json!({"eos_token_id": 61}), ["`eos_token_id` is 61", "below 61"]),
        (json!({"rope_parameters": {"rope_type": "longrope"}}), ["\"longrope\"", "yarn"]),
        (json!({"rope_parameters": {"rope_type": "linear"}}), ["`factor`", "needed"]),
        (json!({"rope_parameters": {"full_attention": {}}}), ["full_attention", "one object"]),
        (json!({"partial_rotary_factor": 0.5}), ["`partial_rotary_factor` is 0.5", "1.0"]),
        (
            json!({"rope_parameters": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4,
                "high_freq_factor": 4}}),
            ["`high_freq_factor` is 4", "above low_freq_factor"],
        ),
        (
            json!({"vocab_size": 1 << 26, "hidden_size": 1 << 26, "num_hidden_layers": 1 << 26}),
            ["parameters", "at most"],
        ),
    ];
    assert!(parse(json!({"max_position_embeddings": 1 << 22})).is_ok());
    for (changes, wanted) in cases {
        let message = match parse(changes.clone()) {
            Err(error) => error.to_string(),
            Ok(_) => panic!("{changes} was accepted"),
        };
        for part in wanted {
            assert!(message.contains(part), "{changes}: `{part}` is not in: {message}");
        }
    }
}

#[test]
fn files_that_are_no_configuration_are_refused() {
    for text in ["", "null", "[]", "{", "{}", "\u{0}", "{\"model_type\": \"qwen3\"}"] {
        assert!(Qwen3Config::from_json(text).is_err(), "{text:?}");
    }
    let nowhere = Qwen3Config::from_dir(Path::new("/nowhere/at/all")).unwrap_err().to_string();
    assert!(nowhere.contains("/nowhere/at/all/config.json"), "{nowhere}");
}

#[test]
fn saving_keeps_the_file_and_changes_the_type_alone() {
    let text = config_json(json!({"rope_parameters": {"rope_theta": 1000000, "x_unknown": 1e-6}}));
    let before: Value = serde_json::from_str(&text).unwrap();
    let config = Qwen3Config::from_json(&text).unwrap();
    let mut after: Value = serde_json::from_str(&config.to_json("bfloat16")).unwrap();
    assert_eq!(after["dtype"], "bfloat16");
    assert!(after.get("torch_dtype").is_none());
    after["dtype"] = before["dtype"].clone();
    assert_eq!(after, before);

    let old = parse(json!({"torch_dtype": "float16", "dtype": null})).unwrap();
    assert_eq!(old.stored_dtype.as_deref(), Some("float16"));
    let after: Value = serde_json::from_str(&old.to_json("float32")).unwrap();
    assert_eq!((&after["torch_dtype"], &after["dtype"]), (&json!("float32"), &json!("float32")));
}

proptest! {
    #[test]
    fn no_value_of_any_field_panics(
        field in proptest::sample::select(vec![
            "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim",
            "num_attention_heads", "num_key_value_heads", "max_position_embeddings",
            "rms_norm_eps", "rope_theta", "rope_parameters", "rope_scaling", "layer_types",
            "eos_token_id", "pad_token_id", "architectures", "model_type",
        ]),
        value in proptest::sample::select(vec![
            json!(null), json!(0), json!(1), json!(-1), json!(2), json!(u64::MAX), json!(i64::MIN),
            json!(1e308), json!(1e-308), json!(""), json!("\u{10ffff}"), json!([]), json!([[]]),
            json!({}), json!({"rope_type": 3}), json!({"rope_type": "yarn", "factor": 1e308}),
            json!({"rope_type": "yarn", "original_max_position_embeddings": 1e-300}), json!(true),
        ]),
    ) {
        // Refused or accepted: either is an answer.
        let _ = parse(json!({field: value}));
    }
}
