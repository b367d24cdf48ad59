//! Bodies by decisions: most of them as a client would write them, some with a mistake.

use std::fmt::Write as _;

use super::CLASSES;
use crate::draw::Draw;

/// Numbers that are none of the right kind, or at an edge of it.
const ODD: [&str; 12] = [
    "-1",
    "-0",
    "1e0",
    "0.5",
    "4294967295",
    "4294967296",
    "18446744073709551616",
    "1e400",
    "-1e-46",
    "null",
    "\"1\"",
    "[1]",
];

/// A body for a route.
pub(super) fn body(route: usize, draw: &mut Draw<'_>) -> Vec<u8> {
    let mut fields = match route {
        0 => trl(draw),
        _ => vllm(draw),
    };
    if draw.once_in(8) && fields.len() > 1 {
        let at = draw.up_to(fields.len() - 1);
        match draw.up_to(1) {
            0 => drop(fields.remove(at)),
            _ => fields.push(fields[at].clone()),
        }
    }
    let mut text = format!("{{{}}}", fields.join(",")).into_bytes();
    if draw.once_in(8) {
        let at = draw.up_to(text.len() - 1);
        text[at] = draw.any();
    }
    if draw.once_in(32) {
        text.truncate(draw.up_to(text.len()));
    }
    text
}

fn trl(draw: &mut Draw<'_>) -> Vec<String> {
    let many = draw.of(&[1, 2, 3, 5, 0]);
    let (mut sequences, mut lengths) = (Vec::new(), Vec::new());
    for _ in 0..many {
        let (ids, length) = ids(draw);
        sequences.push(ids);
        lengths.push(match draw.up_to(15) {
            15 => odd(draw),
            14 => (length + 1).to_string(),
            _ => draw.up_to(length).to_string(),
        });
    }
    lengths.truncate(lengths.len() - draw.of(&[0, 0, 0, 0, 0, 0, 0, 1]).min(many));
    let mut fields = vec![
        format!("\"sequences\":[{}]", sequences.join(",")),
        format!("\"prompt_lengths\":[{}]", lengths.join(",")),
    ];
    push(draw, &mut fields, "top_logprobs", &["1", "2", "0", "32", "33", "100", "101"]);
    push(draw, &mut fields, "temperature", &TEMPERATURES);
    push(draw, &mut fields, "response_format", &["\"binary\"", "\"json\"", "\"\""]);
    fields
}

/// Temperatures, the lowest and the highest among them.
const TEMPERATURES: [&str; 9] =
    ["1", "0", "2.5", "0.0001", "1000000", "9.999e-5", "1000001", "-1", "-0.0"];

fn vllm(draw: &mut Draw<'_>) -> Vec<String> {
    let prompt = match draw.up_to(3) {
        0 => ids(draw).0,
        1 => text(draw),
        2 => list(draw, |draw| ids(draw).0),
        _ => list(draw, text),
    };
    let mut fields = vec![format!("\"prompt\":{prompt}")];
    let counts = ["2", "1", "0", "-1", "32", "100", "101", "-2"];
    push(draw, &mut fields, "prompt_logprobs", &counts);
    push(draw, &mut fields, "logprobs", &counts);
    push(draw, &mut fields, "max_tokens", &["1", "0", "2", "-1"]);
    push(draw, &mut fields, "temperature", &TEMPERATURES);
    push(draw, &mut fields, "echo", &["true", "false"]);
    push(draw, &mut fields, "model", &["\"fake\"", "\"\"", "\"other\""]);
    push(draw, &mut fields, "n", &["1", "2"]);
    push(draw, &mut fields, "stream", &["false", "true"]);
    push(draw, &mut fields, "return_tokens_as_token_ids", &["true", "false"]);
    push(draw, &mut fields, "return_token_ids", &["true", "false"]);
    fields
}

/// A field with one of these values in two cases of three, now and then with an odd one.
fn push(draw: &mut Draw<'_>, fields: &mut Vec<String>, name: &str, values: &[&str]) {
    let value = match draw.up_to(32) {
        0..10 => return,
        32 => odd(draw),
        _ => draw.of(values).to_owned(),
    };
    fields.push(format!("\"{name}\":{value}"));
}

fn odd(draw: &mut Draw<'_>) -> String {
    draw.of(&ODD).to_owned()
}

fn list(draw: &mut Draw<'_>, one: fn(&mut Draw<'_>) -> String) -> String {
    let all: Vec<String> = (0..draw.of(&[1, 2, 3, 6, 0])).map(|_| one(draw)).collect();
    format!("[{}]", all.join(","))
}

/// A list of ids, and how many they are.
fn ids(draw: &mut Draw<'_>) -> (String, usize) {
    let length = draw.of(&[1, 2, 3, 5, 9, 16, 17, 0]);
    let id = |draw: &mut Draw<'_>| match draw.up_to(63) {
        63 => odd(draw),
        62 => CLASSES.to_string(),
        id => (id % CLASSES).to_string(),
    };
    let ids: Vec<String> = (0..length).map(|_| id(draw)).collect();
    (format!("[{}]", ids.join(",")), length)
}

fn text(draw: &mut Draw<'_>) -> String {
    let mut text = String::new();
    for _ in 0..draw.of(&[1, 2, 5, 23, 24, 25, 0]) {
        let _ = match draw.up_to(15) {
            15 => write!(text, "\\u{:04x}", draw.any::<u16>()),
            14 => write!(text, "\u{e9}"),
            13 => write!(text, "\\n"),
            letter => write!(text, "{}", char::from(b'a' + letter as u8)),
        };
    }
    format!("\"{text}\"")
}
