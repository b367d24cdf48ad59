//! A byte-level BPE tokenizer of a few hundred entries, of the kind Qwen's is.

use std::path::Path;

use serde_json::{Value, json};

/// The chat template written beside it: ChatML, and nothing else.
pub const CHAT_TEMPLATE: &str = "{% for m in messages %}{{'<|im_start|>' + m['role'] + '\n' + \
    m['content'] + '<|im_end|>\n'}}{% endfor %}{% if add_generation_prompt %}\
    {{'<|im_start|>assistant\n'}}{% endif %}";

/// Merges beyond single bytes, each of two entries that exist by then.
const MERGES: [[&str; 2]; 6] =
    [["h", "e"], ["l", "l"], ["he", "ll"], ["hell", "o"], ["Ġ", "w"], ["Ċ", "Ċ"]];

/// tokenizer.json: the 256 bytes, then the merges, then `<|endoftext|>`, `<|im_start|>` and
/// `<|im_end|>`.
pub fn tiny_tokenizer_json() -> Value {
    let mut vocabulary: Vec<String> = (0..=255).map(|b| byte_letter(b).to_string()).collect();
    vocabulary.extend(MERGES.iter().map(|pair| pair.concat()));
    let special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
    let added: Vec<Value> = special
        .iter()
        .enumerate()
        .map(|(i, content)| {
            json!({
                "id": vocabulary.len() + i, "content": content, "single_word": false,
                "lstrip": false, "rstrip": false, "normalized": false, "special": true,
            })
        })
        .collect();
    let ids: serde_json::Map<String, Value> =
        vocabulary.into_iter().enumerate().map(|(id, entry)| (entry, json!(id))).collect();
    let byte_level = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true,
    });
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": null, "pre_tokenizer": byte_level, "post_processor": null,
        "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": false, "vocab": ids, "merges": MERGES,
        },
    })
}

/// Writes the tiny tokenizer, its configuration (`<|im_end|>` ends a sequence) and its chat
/// template into a folder.
///
/// # Panics
/// When a file cannot be written.
pub fn write_tiny_tokenizer(dir: &Path) {
    let config = json!({ "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>" });
    let files = [
        ("tokenizer.json", tiny_tokenizer_json().to_string()),
        ("tokenizer_config.json", config.to_string()),
        ("chat_template.jinja", CHAT_TEMPLATE.to_owned()),
    ];
    for (name, content) in files {
        std::fs::write(dir.join(name), content).expect("a test's folder takes files");
    }
}

/// GPT-2's visible letter for a byte: itself where it is printable, else the next free one from
/// U+0100 on.
fn byte_letter(byte: u8) -> char {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|&b| !printable(b)).count() as u32;
    char::from_u32(0x100 + before).expect("a letter")
}
