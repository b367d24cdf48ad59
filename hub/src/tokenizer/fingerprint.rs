//! A tokenizer's fingerprint: equal exactly when the same text becomes the same ids.

use serde_json::{Map, Value};

/// What the hash begins with, so that it can never be mistaken for another kind's.
const DOMAIN: &[u8] = b"distill tokenizer 1\n";

/// BLAKE3 over the parts that decide ids. They are taken from the loaded tokenizer, written anew
/// by the library, and not from the file: so defaults left out, and merges written as `"a b"` or
/// as `["a", "b"]`, make no difference.
pub(super) fn of(tokenizer: &tokenizers::Tokenizer) -> serde_json::Result<[u8; 32]> {
    let mut whole = serde_json::to_value(tokenizer)?;
    let mut parts = Map::new();
    for name in ["added_tokens", "normalizer", "pre_tokenizer", "model"] {
        parts.insert(name.to_owned(), whole[name].take());
    }
    for token in parts["added_tokens"].as_array_mut().into_iter().flatten() {
        // Whether a token is "special" decides only what decoding leaves out.
        token.as_object_mut().map(|token| token.remove("special"));
    }
    remove_everywhere(&mut parts["pre_tokenizer"], "trim_offsets");
    let mut bytes = Vec::from(DOMAIN);
    write_canonical(&Value::Object(parts), &mut bytes)?;
    Ok(*blake3::hash(&bytes).as_bytes())
}

/// Drops a key that concerns offsets only.
fn remove_everywhere(value: &mut Value, key: &str) {
    match value {
        Value::Object(map) => {
            map.remove(key);
            map.values_mut().for_each(|v| remove_everywhere(v, key));
        }
        Value::Array(items) => items.iter_mut().for_each(|v| remove_everywhere(v, key)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// JSON without spaces, keys in byte order.
fn write_canonical(value: &Value, out: &mut Vec<u8>) -> serde_json::Result<()> {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_unstable_by_key(|(key, _)| *key);
            out.push(b'{');
            for (i, (key, value)) in entries.into_iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                serde_json::to_writer(&mut *out, key)?;
                out.push(b':');
                write_canonical(value, out)?;
            }
            out.push(b'}');
        }
        Value::Array(items) => {
            out.push(b'[');
            for (i, value) in items.iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                write_canonical(value, out)?;
            }
            out.push(b']');
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            serde_json::to_writer(&mut *out, value)?;
        }
    }
    Ok(())
}
