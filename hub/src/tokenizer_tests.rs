//! Text to ids: against Python's tokenizers, and against hostile files.

use serde_json::{Value, json};
use test_support::shared;

use super::*;
use crate::testing::{tiny_tokenizer_json, write_tiny_tokenizer};

/// What the Python packages make of the same texts; `made_by` in it says which.
const GOLDEN: &str = include_str!("../tests/golden/gsm8k_tokenizer.json");

fn ids_of(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

/// The tokenizer of a folder that holds this tokenizer.json.
fn load(value: &Value) -> Result<Tokenizer, TokenizerError> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tokenizer.json"), value.to_string()).unwrap();
    Tokenizer::load(dir.path())
}

fn tiny() -> Tokenizer {
    let dir = tempfile::tempdir().unwrap();
    write_tiny_tokenizer(dir.path());
    Tokenizer::load(dir.path()).unwrap()
}

/// zlib's CRC-32, a bit at a time.
fn crc32(bytes: impl Iterator<Item = u8>) -> u32 {
    !bytes.fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
        })
    })
}

#[test]
fn ids_are_those_of_python() {
    let Some(dir) = shared("models/gsm8k-student", "ids_are_those_of_python") else { return };
    let golden: Value = serde_json::from_str(GOLDEN).unwrap();
    let tokenizer = Tokenizer::load(&dir).unwrap();
    assert_eq!(tokenizer.size(), 4096);
    assert_eq!(tokenizer.eos(), Some(4095));
    for case in golden["texts"].as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        let ids = tokenizer.encode(text).unwrap();
        assert_eq!(ids, ids_of(&case["ids"]), "{text:?}");
        assert_eq!(tokenizer.encode_with_offsets(text).unwrap().ids, ids, "{text:?}");
        assert_eq!(tokenizer.decode(&ids).unwrap(), text);
    }
}

#[test]
fn every_row_of_gsm8k_through_the_chat_template_has_pythons_ids() {
    let test = "every_row_of_gsm8k_through_the_chat_template_has_pythons_ids";
    let (Some(dir), Some(data)) =
        (shared("models/gsm8k-student", test), shared("data/gsm8k/train.jsonl", test))
    else {
        return;
    };
    let golden: Value = serde_json::from_str(GOLDEN).unwrap();
    let golden = &golden["gsm8k_train"];
    let tokenizer = Tokenizer::load(&dir).unwrap();
    let template = crate::chat::ChatTemplate::load(&dir).unwrap().unwrap();
    let mut all = Vec::new();
    let text = std::fs::read_to_string(data).unwrap();
    for (i, line) in text.lines().enumerate() {
        let row: Value = serde_json::from_str(line).unwrap();
        let message =
            |role, column: &str| crate::chat::Message::new(role, row[column].as_str().unwrap());
        let turns = [message("user", "question"), message("assistant", "answer")];
        let ids = tokenizer.encode(&template.render(&turns, false).unwrap()).unwrap();
        if let Some(wanted) = golden["first_rows"].get(i) {
            assert_eq!(ids, ids_of(wanted), "row {i}");
        }
        all.extend(ids);
    }
    assert_eq!(Some(all.len() as u64), golden["tokens"].as_u64());
    let crc = crc32(all.iter().flat_map(|id| id.to_le_bytes()));
    assert_eq!(Some(u64::from(crc)), golden["crc32_of_all_ids"].as_u64());
}

#[test]
fn nothing_is_added_cut_or_padded_whatever_the_file_says() {
    let mut value = tiny_tokenizer_json();
    value["truncation"] =
        json!({"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0});
    value["padding"] = json!({"strategy": {"Fixed": 9}, "direction": "Right",
        "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "!"});
    value["post_processor"] = json!({"type": "TemplateProcessing", "pair": [],
        "single": [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}},
                   {"Sequence": {"id": "A", "type_id": 0}}],
        "special_tokens": {"<|im_start|>": {"id": "<|im_start|>", "ids": [263],
                           "tokens": ["<|im_start|>"]}}});
    let tokenizer = load(&value).unwrap();
    let plain = tiny();
    assert_eq!(tokenizer.encode("hello world").unwrap(), plain.encode("hello world").unwrap());
    assert_eq!(tokenizer.fingerprint(), plain.fingerprint());
}

#[test]
fn special_tokens_in_text_are_recognised_and_offsets_are_bytes() {
    let tokenizer = tiny();
    let text = "<|im_start|>hello né<|im_end|>";
    let encoded = tokenizer.encode_with_offsets(text).unwrap();
    let spans: Vec<&str> = encoded.offsets.iter().map(|&(a, b)| &text[a..b]).collect();
    assert_eq!(spans, ["<|im_start|>", "hello", " ", "n", "é", "é", "<|im_end|>"]);
    assert_eq!(encoded.ids[0], 263);
    assert_eq!(encoded.ids.last(), tokenizer.eos().as_ref());
    assert_eq!(tokenizer.decode(&encoded.ids).unwrap(), text);
    assert_eq!(tokenizer.decode_plain(&encoded.ids).unwrap(), "hello né");
    assert!(tokenizer.encode("").unwrap().is_empty());
    assert_eq!(tokenizer.size(), 265);
}

#[test]
fn one_id_has_a_text_and_a_padded_row_has_none() {
    let tokenizer = tiny();
    let hello = tokenizer.encode("hello").unwrap();
    assert_eq!(hello.len(), 1);
    assert_eq!(tokenizer.id_to_text(hello[0]).as_deref(), Some("hello"));
    assert_eq!(tokenizer.id_to_text(264).as_deref(), Some("<|im_end|>"));
    assert_eq!(tokenizer.id_to_text(265), None);
    assert_eq!(tokenizer.id_to_text(u32::MAX), None);
    assert_eq!(tokenizer.token_to_id("<|im_end|>"), Some(264));
}

#[test]
fn the_fingerprint_depends_on_what_decides_ids_and_on_nothing_else() {
    let base = load(&tiny_tokenizer_json()).unwrap().fingerprint();
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut value = tiny_tokenizer_json();
        change(&mut value);
        load(&value).unwrap().fingerprint()
    };
    let same: [&dyn Fn(&mut Value); 6] = [
        &|v| v["model"]["merges"][0] = json!("h e"),
        &|v| drop(v["model"].as_object_mut().unwrap().remove("ignore_merges")),
        &|v| v["decoder"] = json!(null),
        &|v| v["pre_tokenizer"]["trim_offsets"] = json!(false),
        &|v| v["added_tokens"][0]["special"] = json!(false),
        &|v| v["model"]["vocab"].as_object_mut().unwrap().sort_keys(),
    ];
    for (i, change) in same.into_iter().enumerate() {
        // Merges are all pairs or all texts.
        if i == 0 {
            let all = |v: &mut Value| {
                for pair in v["model"]["merges"].as_array_mut().unwrap() {
                    *pair = json!(format!(
                        "{} {}",
                        pair[0].as_str().unwrap(),
                        pair[1].as_str().unwrap()
                    ));
                }
            };
            assert_eq!(changed(&all), base, "merges as text");
            continue;
        }
        assert_eq!(changed(change), base, "change {i}");
    }
    let other: [&dyn Fn(&mut Value); 7] = [
        &|v| v["model"]["merges"].as_array_mut().unwrap().swap(0, 1),
        &|v| drop(v["model"]["merges"].as_array_mut().unwrap().pop()),
        &|v| {
            v["model"]["vocab"]["!"] = json!(1);
            v["model"]["vocab"]["\""] = json!(0);
        },
        &|v| v["added_tokens"][0]["content"] = json!("<|end|>"),
        &|v| v["added_tokens"][0]["lstrip"] = json!(true),
        &|v| v["normalizer"] = json!({"type": "NFC"}),
        &|v| v["pre_tokenizer"]["add_prefix_space"] = json!(true),
    ];
    for (i, change) in other.into_iter().enumerate() {
        assert_ne!(changed(change), base, "change {i}");
    }
}

#[test]
fn formatting_does_not_change_the_fingerprint() {
    let dir = tempfile::tempdir().unwrap();
    let pretty = serde_json::to_string_pretty(&tiny_tokenizer_json()).unwrap();
    std::fs::write(dir.path().join("tokenizer.json"), format!("\u{feff}{pretty}\r\n")).unwrap();
    let loaded = Tokenizer::load(dir.path()).unwrap();
    assert_eq!(loaded.fingerprint(), tiny().fingerprint());
}

#[test]
fn a_missing_file_is_named_with_what_is_there_instead() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("vocab.json"), "{}").unwrap();
    let message = Tokenizer::load(dir.path()).unwrap_err().to_string();
    assert!(message.contains("no tokenizer.json (only vocab.json)"), "{message}");
    assert!(message.contains("save_pretrained"), "{message}");
}

#[test]
fn hostile_files_give_errors_that_name_the_file() {
    let mut cases: Vec<(&str, String)> = vec![
        ("empty", String::new()),
        ("not an object", "[]".to_owned()),
        ("no model", "{\"version\": \"1.0\"}".to_owned()),
        ("deep", format!("{{\"model\": {}", "[".repeat(200_000))),
        ("half", tiny_tokenizer_json().to_string()[..900].to_owned()),
    ];
    let mut changed = |name: &'static str, change: &dyn Fn(&mut Value)| {
        let mut value = tiny_tokenizer_json();
        change(&mut value);
        cases.push((name, value.to_string()));
    };
    changed("version", &|v| v["version"] = json!("7"));
    changed("model type", &|v| v["model"]["type"] = json!("Magic"));
    changed("merge of unknown", &|v| v["model"]["merges"][0] = json!(["h", "nonesuch"]));
    changed("merge of three", &|v| v["model"]["merges"][0] = json!(["h", "e", "l"]));
    changed("negative id", &|v| v["model"]["vocab"]["!"] = json!(-1));
    changed("id too large", &|v| v["model"]["vocab"]["!"] = json!(1u64 << 40));
    changed("bad regex", &|v| {
        v["pre_tokenizer"] = json!({"type": "Split", "pattern": {"Regex": "(("},
            "behavior": "Isolated", "invert": false});
    });
    changed("huge regex", &|v| {
        v["pre_tokenizer"] = json!({"type": "Split", "behavior": "Isolated", "invert": false,
            "pattern": {"Regex": "((a{1000}){1000}){1000}"}});
    });
    changed("dropout", &|v| v["model"]["dropout"] = json!(0.1));
    for (name, text) in cases {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("tokenizer.json"), text).unwrap();
        let message = match Tokenizer::load(dir.path()) {
            Ok(_) => panic!("{name}: loaded"),
            Err(error) => error.to_string(),
        };
        assert!(message.contains("tokenizer.json"), "{name}: {message}");
    }
}

#[test]
fn a_configuration_that_adds_tokens_behind_the_files_back_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    write_tiny_tokenizer(dir.path());
    let config = dir.path().join("tokenizer_config.json");
    let message_of = |value: Value| {
        std::fs::write(&config, value.to_string()).unwrap();
        Tokenizer::load(dir.path()).map(|t| t.eos()).map_err(|error| error.to_string())
    };
    let agreeing = json!({"eos_token": {"content": "<|im_end|>"},
        "added_tokens_decoder": {"263": {"content": "<|im_start|>"}}});
    assert_eq!(message_of(agreeing), Ok(Some(264)));
    assert_eq!(message_of(json!({})), Ok(None));
    let message = message_of(json!({"eos_token": "</s>"})).unwrap_err();
    assert!(message.contains("\"</s>\"") && message.contains("no id"), "{message}");
    let added = json!({"added_tokens_decoder": {"300": {"content": "<|im_start|>"}}});
    let message = message_of(added).unwrap_err();
    assert!(message.contains("with id 300") && message.contains("id 263"), "{message}");
}

#[test]
fn many_threads_may_encode_at_once() {
    let tokenizer = tiny();
    let wanted = tokenizer.encode("hello world hello").unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..50 {
                    assert_eq!(tokenizer.encode("hello world hello").unwrap(), wanted);
                }
            });
        }
    });
}
