//! The `tojson` filter of transformers: Python's `json.dumps`, without HTML escapes.

use std::fmt::Write;

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};

/// Values nested deeper than this are refused, so that no template can exhaust the stack.
const MAX_DEPTH: usize = 100;

/// `value | tojson(indent=…, ensure_ascii=…, separators=…, sort_keys=…)`.
pub(super) fn tojson(
    state: &State,
    value: &Value,
    indent: Option<usize>,
    options: Kwargs,
) -> Result<String, Error> {
    let indent = match indent {
        Some(indent) => Some(indent),
        None => options.get::<Option<usize>>("indent")?,
    };
    let separators = options.get::<Option<Vec<String>>>("separators")?;
    let (item, key) = match separators.as_deref() {
        None => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => return Err(invalid("separators takes two texts")),
    };
    let style = Style {
        indent,
        item,
        key,
        ascii: options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sort: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    options.assert_all_used()?;
    let mut out = String::new();
    style.write(state, value, 0, &mut out)?;
    Ok(out)
}

struct Style {
    indent: Option<usize>,
    item: String,
    key: String,
    ascii: bool,
    sort: bool,
}

impl Style {
    fn write(
        &self,
        state: &State,
        value: &Value,
        depth: usize,
        out: &mut String,
    ) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(invalid("tojson: nested too deeply"));
        }
        state.consume_fuel(1)?;
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.push_str(&number(value)),
            ValueKind::String => self.write_text(value.as_str().unwrap_or_default(), out),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.write_all(state, "[]", depth, out, &items, |style, item, out| {
                    style.write(state, item, depth + 1, out)
                })?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort {
                    keys.sort();
                }
                self.write_all(state, "{}", depth, out, &keys, |style, key, out| {
                    style.write_text(&key.to_string(), out);
                    out.push_str(&style.key);
                    style.write(state, &value.get_item(key)?, depth + 1, out)
                })?;
            }
            // The list of kinds is open.
            ValueKind::Undefined | ValueKind::Bytes | ValueKind::Plain | ValueKind::Invalid | _ => {
                let kind = value.kind();
                return Err(invalid(format!("tojson: {kind} cannot be written as JSON")));
            }
        }
        Ok(())
    }

    fn write_all(
        &self,
        state: &State,
        brackets: &str,
        depth: usize,
        out: &mut String,
        items: &[Value],
        write: impl Fn(&Self, &Value, &mut String) -> Result<(), Error>,
    ) -> Result<(), Error> {
        out.push_str(&brackets[..1]);
        for (i, item) in items.iter().enumerate() {
            if i > 0 {
                out.push_str(&self.item);
            }
            self.new_line(state, depth + 1, out)?;
            write(self, item, out)?;
        }
        if !items.is_empty() {
            self.new_line(state, depth, out)?;
        }
        out.push_str(&brackets[1..]);
        Ok(())
    }

    fn new_line(&self, state: &State, depth: usize, out: &mut String) -> Result<(), Error> {
        let Some(indent) = self.indent else { return Ok(()) };
        let spaces = indent.saturating_mul(depth);
        state.consume_fuel(spaces as u64 / 64)?;
        out.push('\n');
        out.extend(std::iter::repeat_n(' ', spaces));
        Ok(())
    }

    fn write_text(&self, text: &str, out: &mut String) {
        let quoted = serde_json::Value::from(text).to_string();
        if !self.ascii {
            // Python writes U+007F as it is, as serde_json does.
            out.push_str(&quoted);
            return;
        }
        for unit in quoted.chars() {
            if unit.is_ascii() {
                out.push(unit);
                continue;
            }
            for half in unit.encode_utf16(&mut [0; 2]) {
                write!(out, "\\u{half:04x}").expect("a String takes all text");
            }
        }
    }
}

/// A number as Python writes it.
fn number(value: &Value) -> String {
    match f64::try_from(value.clone()) {
        Ok(float) if !value.is_integer() => float_text(float),
        _ => value.to_string(),
    }
}

/// Python's `repr`: the shortest digits, with an exponent below 1e-4 and from 1e16 on.
fn float_text(value: f64) -> String {
    if !value.is_finite() {
        let text = if value.is_nan() { "NaN" } else { "Infinity" };
        return if value < 0.0 { format!("-{text}") } else { text.to_owned() };
    }
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    match exponent.parse::<i32>() {
        Ok(exponent) if value != 0.0 && !(-4..16).contains(&exponent) => {
            format!("{digits}e{exponent:+03}")
        }
        _ => format!("{value:?}"),
    }
}

fn invalid(reason: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason.into())
}
