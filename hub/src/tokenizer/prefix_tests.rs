//! The first tokens of a text against the whole text's encoding, cut off.

use std::path::Path;

use super::*;
use crate::testing::{tiny_tokenizer_json, write_tiny_tokenizer};

/// The tiny tokenizer, and one with a thousand real merges.
fn tokenizers() -> [Tokenizer; 2] {
    let dir = tempfile::tempdir().unwrap();
    write_tiny_tokenizer(dir.path());
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../student-trainer/demo/student");
    [Tokenizer::load(dir.path()).unwrap(), Tokenizer::load(&demo).unwrap()]
}

/// What is wanted: everything encoded, then cut off.
fn wanted(tokenizer: &Tokenizer, text: &str, max_tokens: usize) -> (Encoded, bool) {
    let mut whole = tokenizer.encode_with_offsets(text).unwrap();
    let more = whole.ids.len() > max_tokens;
    whole.ids.truncate(max_tokens);
    whole.offsets.truncate(max_tokens);
    (whole, more)
}

/// A text of `parts` random parts; repetitions make words and runs of all lengths.
fn text(seed: u64, parts: usize) -> String {
    const PARTS: [&str; 20] = [
        "hello",
        " world",
        " The",
        "people",
        " of",
        " Ulm",
        "  ",
        " ",
        "\n",
        "\r\n\n",
        "<|im_end|>",
        "<|im_start|>",
        "<|im_",
        "|>",
        "é",
        "e\u{301}",
        "漢字",
        "🦊",
        "123",
        "...,",
    ];
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = |n: usize| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % n
    };
    (0..parts)
        .map(|_| {
            let part = PARTS[next(PARTS.len())];
            let times = if next(6) == 0 { 1 + next(40) } else { 1 };
            part.repeat(times)
        })
        .collect()
}

#[test]
fn the_first_tokens_are_those_of_the_whole_text_wherever_it_is_cut() {
    for tokenizer in tokenizers() {
        for seed in 0..300 {
            let text = text(seed, 60);
            for max_tokens in [0, 1, 7, 40, 10_000] {
                let (encoded, more) = wanted(&tokenizer, &text, max_tokens);
                for cut in [1, 17 + seed as usize % 50, 200] {
                    let found = tokenizer.beginning(&text, max_tokens, cut, 64).unwrap();
                    assert_eq!(found.encoded, encoded, "seed {seed}, {max_tokens}, {cut}: {text}");
                    assert_eq!(found.more, more, "seed {seed}, {max_tokens}, {cut}: {text}");
                }
            }
        }
    }
}

#[test]
fn awkward_texts_of_a_megabyte_are_cut_right_after_reading_little() {
    let long = |part: &str| part.repeat((1 << 20) / part.len());
    let letters: String = (0..1u64 << 20)
        .map(|i| char::from(b'a' + (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 59) as u8 % 26))
        .collect();
    let texts = [
        long("a"),
        long(" "),
        long("\n"),
        long("the"),
        long("ab"),
        long("<|im_end|>"),
        long("Hello, world. "),
        long("e\u{301}"),
        format!("hello{}", long(" ")),
        format!("{}hello", long(" ")),
        letters,
    ];
    for tokenizer in tokenizers() {
        for text in &texts {
            let (encoded, more) = wanted(&tokenizer, text, 1024);
            let found = tokenizer.encode_first(text, 1024).unwrap();
            assert!(found.encoded == encoded && found.more == more, "{}", &text[..20]);
            assert!(found.bytes_read <= 1 << 18, "{} of {}", found.bytes_read, &text[..20]);
        }
    }
}

#[test]
fn a_text_with_just_as_many_tokens_is_not_cut() {
    for tokenizer in tokenizers() {
        let text = text(5, 4_000);
        let all = tokenizer.encode_with_offsets(&text).unwrap();
        let count = all.ids.len();
        for (max_tokens, more) in [(count - 1, true), (count, false), (count + 1, false)] {
            let found = tokenizer.beginning(&text, max_tokens, 64, 64).unwrap();
            assert_eq!((found.encoded.ids.len(), found.more), (count.min(max_tokens), more));
        }
    }
}

#[test]
fn a_cut_through_a_long_added_token_is_not_taken_for_its_words() {
    let token = "<an added token of many words, longer than any word could look ahead>";
    let mut json = tiny_tokenizer_json();
    let added = json["added_tokens"].as_array_mut().unwrap();
    let mut long = added[0].clone();
    long["id"] = (added[added.len() - 1]["id"].as_u64().unwrap() + 1).into();
    long["content"] = token.into();
    added.push(long);
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tokenizer.json"), json.to_string()).unwrap();
    let tokenizer = Tokenizer::load(dir.path()).unwrap();
    let text = format!("hello world {token}").repeat(20);
    for max_tokens in [5, 10, 20] {
        let (encoded, more) = wanted(&tokenizer, &text, max_tokens);
        for cut in 1..400 {
            let found = tokenizer.beginning(&text, max_tokens, cut, 1 << 16).unwrap();
            assert_eq!((&found.encoded, found.more), (&encoded, more), "{max_tokens}, {cut}");
        }
    }
}
