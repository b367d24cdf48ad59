//! A record becomes a row: which columns mean what.

use hub::chat::Message;
use serde_json::{Map, Value};

use super::error::{DataError, Place};

/// One example and where it came from.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// What it says.
    pub content: RowContent,
    /// Where it stands.
    pub place: Place,
}

/// What a row says.
#[derive(Clone, Debug, PartialEq)]
pub enum RowContent {
    /// `text`: nothing in it is told apart, so all of it is learned.
    Text(String),
    /// `prompt` + `completion`, joined as they stand.
    Completion {
        /// What is given.
        prompt: String,
        /// What is learned.
        completion: String,
    },
    /// `instruction` (and `input`) + `response` or `output`.
    Instruction {
        /// What is asked; `input` follows on a line of its own.
        instruction: String,
        /// What is learned.
        response: String,
    },
    /// `messages`, `conversations`, or `question` + `answer`.
    Conversation(Vec<Message>),
}

/// Columns that are read, of whatever shape.
pub(super) const COLUMNS: &[&str] = &[
    "messages",
    "conversations",
    "prompt",
    "completion",
    "instruction",
    "input",
    "response",
    "output",
    "question",
    "answer",
    "text",
];

/// The row of a record. Where columns of several shapes stand together, the first of `messages`,
/// `conversations`, `prompt` + `completion`, `instruction` + …, `question` + `answer`, `text`
/// holds, the most telling first.
pub(super) fn row_of(record: Value, place: Place) -> Result<Row, DataError> {
    let Value::Object(record) = record else {
        return Err(DataError::NotAnObject { place, found: kind_of(&record) });
    };
    let has = |column: &str| record.get(column).is_some_and(|value| !value.is_null());
    let text = |column: &str| text_of(&record, column, &place);
    let content = if has("messages") {
        RowContent::Conversation(messages(&record["messages"], "messages", &place)?)
    } else if has("conversations") {
        RowContent::Conversation(messages(&record["conversations"], "conversations", &place)?)
    } else if has("prompt") && has("completion") {
        RowContent::Completion { prompt: text("prompt")?, completion: text("completion")? }
    } else if has("instruction") && (has("response") || has("output")) {
        let mut instruction = text("instruction")?;
        if has("input") && !text("input")?.is_empty() {
            instruction = format!("{instruction}\n{}", text("input")?);
        }
        let response = text(if has("response") { "response" } else { "output" })?;
        RowContent::Instruction { instruction, response }
    } else if has("question") && has("answer") {
        let (question, answer) = (text("question")?, text("answer")?);
        let turns = [Message::new("user", question), Message::new("assistant", answer)];
        RowContent::Conversation(turns.into())
    } else if has("text") {
        RowContent::Text(text("text")?)
    } else {
        let null = |value: &Value| if value.is_null() { " (null)" } else { "" };
        let names = record.iter().map(|(name, value)| format!("{name}{}", null(value)));
        let found = names.collect::<Vec<_>>().join(", ");
        return Err(DataError::Columns { place, found });
    };
    Ok(Row { content, place })
}

fn text_of(record: &Map<String, Value>, column: &str, place: &Place) -> Result<String, DataError> {
    let value = &record[column];
    match value.as_str() {
        Some(text) => Ok(text.to_owned()),
        None => Err(wrong(place, column, value, "text")),
    }
}

fn messages(value: &Value, column: &str, place: &Place) -> Result<Vec<Message>, DataError> {
    let wanted = "a list of {\"role\": ..., \"content\": ...}";
    match value.as_array() {
        Some(turns) if !turns.is_empty() => turns
            .iter()
            .enumerate()
            .map(|(i, turn)| message(turn, &format!("{column}[{i}]"), place))
            .collect(),
        Some(_) | None => Err(wrong(place, column, value, wanted)),
    }
}

/// One turn: `role` and `content`, or `from` and `value` as in ShareGPT's files.
fn message(turn: &Value, at: &str, place: &Place) -> Result<Message, DataError> {
    let wanted = "an object with role and content (or from and value)";
    let Value::Object(turn) = turn else { return Err(wrong(place, at, turn, wanted)) };
    let keys = [("role", "content"), ("from", "value")];
    let Some((role_key, content_key)) = keys.into_iter().find(|(role, _)| turn.contains_key(*role))
    else {
        return Err(wrong(place, at, &Value::Object(turn.clone()), wanted));
    };
    let Some(role) = turn[role_key].as_str() else {
        return Err(wrong(place, &format!("{at}.{role_key}"), &turn[role_key], "text"));
    };
    let role = match (role_key, role) {
        ("from", "human") => "user",
        ("from", "gpt" | "chatgpt" | "bard" | "bing" | "model") => "assistant",
        (_, role) => role,
    };
    let content = turn.get(content_key).unwrap_or(&Value::Null);
    let content = content_text(content)
        .ok_or_else(|| wrong(place, &format!("{at}.{content_key}"), content, "text"))?;
    // Parquet writes a column nobody filled as null.
    let others = turn
        .iter()
        .filter(|(key, value)| *key != role_key && *key != content_key && !value.is_null());
    let extra = others.map(|(key, value)| (key.clone(), value.clone())).collect();
    Ok(Message { role: role.to_owned(), content, extra })
}

/// Text, nothing (a turn that only calls tools), or a list of `{"type": "text", "text": …}`.
fn content_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Null => Some(String::new()),
        Value::Array(parts) => parts
            .iter()
            .map(|part| (part["type"] == "text").then(|| part["text"].as_str()).flatten())
            .collect(),
        Value::Bool(_) | Value::Number(_) | Value::Object(_) => None,
    }
}

fn wrong(place: &Place, column: &str, value: &Value, wanted: &'static str) -> DataError {
    let found = match value {
        Value::Object(map) => {
            let keys: Vec<&str> = map.keys().map(String::as_str).collect();
            format!("an object with [{}]", keys.join(", "))
        }
        Value::Array(items) if items.is_empty() => "an empty list".to_owned(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            kind_of(value).to_owned()
        }
    };
    DataError::Value { place: place.clone(), column: column.to_owned(), found, wanted }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
