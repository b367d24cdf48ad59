//! From files to rows: every shape, format and fault.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ::parquet::arrow::ArrowWriter;
use arrow_array::types::Int32Type;
use arrow_array::{
    Array, ArrayRef, DictionaryArray, Int64Array, LargeStringArray, ListArray, RecordBatch,
    StringArray, StructArray,
};
use arrow_buffer::OffsetBuffer;
use arrow_schema::{DataType, Field};
use hub::chat::Message;
use hub::settings::HubSettings;
use hub::testing::{Hosted, StandIn};

use super::*;

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn put(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    fn spec(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    fn load(&self, name: &str) -> Result<Vec<Row>, DataError> {
        load_bounded(&self.spec(name), None, MAX_LINE_BYTES)
    }

    fn texts(&self, name: &str) -> Vec<String> {
        self.load(name).unwrap().into_iter().map(text_of).collect()
    }

    fn error(&self, name: &str) -> String {
        self.load(name).unwrap_err().to_string()
    }
}

fn load_bounded(
    spec: &str,
    max_samples: Option<usize>,
    max_line_bytes: usize,
) -> Result<Vec<Row>, DataError> {
    let hub = HubSettings::from_vars(|_| None);
    load_with(spec, &LoadOptions { max_samples, max_line_bytes, hub })
}

fn text_of(row: Row) -> String {
    let RowContent::Text(text) = row.content else { panic!("not a text row: {row:?}") };
    text
}

fn content(line: &str) -> RowContent {
    let folder = Folder::new();
    folder.put("a.jsonl", line);
    folder.load("a.jsonl").unwrap().remove(0).content
}

fn error_of(line: impl AsRef<[u8]>) -> String {
    let folder = Folder::new();
    folder.put("a.jsonl", line);
    folder.error("a.jsonl")
}

fn assert_says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "\"{message}\" does not say \"{part}\"");
    }
}

fn conversation(turns: &[(&str, &str)]) -> RowContent {
    let messages = turns.iter().map(|(role, content)| Message::new(*role, *content));
    RowContent::Conversation(messages.collect())
}

#[test]
fn every_shape_becomes_its_row() {
    assert_eq!(content(r#"{"text": "a"}"#), RowContent::Text("a".to_owned()));
    let (prompt, completion) = ("p".to_owned(), "c".to_owned());
    assert_eq!(
        content(r#"{"prompt": "p", "completion": "c", "id": 7}"#),
        RowContent::Completion { prompt, completion }
    );
    let instruction = |instruction: &str, response: &str| RowContent::Instruction {
        instruction: instruction.to_owned(),
        response: response.to_owned(),
    };
    assert_eq!(content(r#"{"instruction": "i", "response": "r"}"#), instruction("i", "r"));
    let alpaca = r#"{"instruction": "i", "input": "x", "output": "o", "text": "all of it"}"#;
    assert_eq!(content(alpaca), instruction("i\nx", "o"));
    let no_input = r#"{"instruction": "i", "input": "", "output": "o"}"#;
    assert_eq!(content(no_input), instruction("i", "o"));
    let asked = conversation(&[("user", "q"), ("assistant", "a")]);
    assert_eq!(content(r#"{"question": "q", "answer": "a"}"#), asked);
    let messages = r#"{"messages": [{"role": "user", "content": "q"},
        {"role": "assistant", "content": [{"type": "text", "text": "a"}]}], "text": null}"#;
    assert_eq!(content(&messages.replace('\n', " ")), asked);
    let shared = r#"{"conversations": [{"from": "system", "value": "s"},
        {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}"#;
    let with_system = conversation(&[("system", "s"), ("user", "q"), ("assistant", "a")]);
    assert_eq!(content(&shared.replace('\n', " ")), with_system);
}

#[test]
fn what_else_a_turn_carries_reaches_the_template() {
    let line = r#"{"messages": [{"role": "assistant", "content": null, "name": null,
        "tool_calls": [1]}]}"#;
    let RowContent::Conversation(messages) = content(&line.replace('\n', " ")) else { panic!() };
    assert_eq!(messages[0].content, "");
    assert_eq!(messages[0].extra.keys().collect::<Vec<_>>(), ["tool_calls"]);
}

#[test]
fn missing_columns_name_what_is_there_and_what_is_accepted() {
    let message =
        error_of("{\"text\": \"a\"}\n{\"instruction\": \"i\", \"label\": 1, \"text\": null}");
    assert_says(&message, &["a.jsonl, line 2", "[instruction, label, text (null)]"]);
    assert_says(&message, &["messages", "prompt + completion", "question + answer", "or text"]);
}

#[test]
fn values_of_the_wrong_kind_name_column_and_line() {
    let cases = [
        (r#"{"text": 7}"#, "column \"text\" holds a number, wanted text"),
        (r#"{"prompt": ["a"], "completion": "b"}"#, "column \"prompt\" holds a list"),
        (r#"{"messages": []}"#, "column \"messages\" holds an empty list"),
        (r#"{"messages": "hello"}"#, "column \"messages\" holds text, wanted a list of"),
        (r#"{"messages": ["hello"]}"#, "column \"messages[0]\" holds text"),
        (r#"{"messages": [{"content": "a"}]}"#, "holds an object with [content]"),
        (r#"{"messages": [{"role": 1, "content": "a"}]}"#, "\"messages[0].role\" holds a number"),
        (
            r#"{"messages": [{"role": "user", "content": [{"type": "image"}]}]}"#,
            "\"messages[0].content\" holds a list, wanted text",
        ),
        ("[1]", "a row must be a JSON object like {\"text\": \"...\"}, found a list"),
    ];
    for (line, wanted) in cases {
        assert_says(&error_of(line), &["a.jsonl, line 1: ", wanted]);
    }
}

#[test]
fn byte_order_marks_crlf_and_blank_lines_are_fine() {
    let folder = Folder::new();
    folder.put("a.jsonl", "\u{feff}{\"text\": \"a\\r\"}\r\n\r\n  \n{\"text\": \"b\"}");
    assert_eq!(folder.texts("a.jsonl"), ["a\r", "b"]);
    assert_eq!(folder.load("a.jsonl").unwrap()[1].place.number, 4);
}

#[test]
fn a_broken_line_is_named() {
    let message = error_of("{\"text\": \"a\"}\n\n{\"text\": \n");
    assert_says(&message, &["a.jsonl, line 3: not valid JSON: EOF", "at column"]);
    assert_says(&error_of("{\"text\": \"a\"} x"), &["line 1: not valid JSON: trailing characters"]);
    assert_says(&error_of("[".repeat(100_000)), &["line 1: not valid JSON: recursion limit"]);
    let message = error_of(b"{\"text\": \"a\"}\n{\"text\": \"\xff\"}\n");
    assert_says(&message, &["line 2: not UTF-8 (bad byte 0xff at column 11)"]);
}

#[test]
fn a_line_beyond_the_bound_is_an_error_and_one_at_the_bound_is_not() {
    let folder = Folder::new();
    let line = format!("{{\"text\": \"{}\"}}", "x".repeat(88));
    assert_eq!(line.len(), 100);
    folder.put("a.jsonl", format!("{line}\n{line}\n"));
    let spec = folder.spec("a.jsonl");
    assert_eq!(load_bounded(&spec, None, 100).unwrap().len(), 2);
    let message = load_bounded(&spec, None, 99).unwrap_err().to_string();
    assert_says(&message, &["a.jsonl, line 1: longer than 99 bytes"]);
    // The bound is on a row, not on an array of them.
    folder.put("c.json", format!("[{}]", [line.as_str(); 50].join(",\n")));
    assert_eq!(load_bounded(&folder.spec("c.json"), None, 110).unwrap().len(), 50);
    folder.put("b.json", format!("[\n{line},\n{}]", " ".repeat(1 << 21)));
    let message = load_bounded(&folder.spec("b.json"), None, 1 << 20).unwrap_err().to_string();
    assert_says(&message, &["b.json", "longer than 1048576 bytes"]);
}

#[test]
fn compressed_files_are_read_and_broken_ones_named() {
    let folder = Folder::new();
    let pack = |text: &str| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text.as_bytes()).unwrap();
        encoder.finish().unwrap()
    };
    let two_members = [pack("{\"text\": \"a\"}\n"), pack("{\"text\": \"b\"}\n")].concat();
    folder.put("a.jsonl.gz", &two_members);
    assert_eq!(folder.texts("a.jsonl.gz"), ["a", "b"]);
    folder.put("cut.jsonl.gz", &two_members[..two_members.len() - 12]);
    assert_says(&folder.error("cut.jsonl.gz"), &["cannot read", "cut.jsonl.gz at line 2"]);
    let frame = zstd::encode_all(&b"{\"text\": \"z\"}\n"[..], 1).unwrap();
    folder.put("a.json.zst", [&frame[..], &frame[..]].concat());
    assert_eq!(folder.texts("a.json.zst"), ["z", "z"]);
    folder.put("no.jsonl.zst", "{\"text\": \"plain\"}");
    assert_says(&folder.error("no.jsonl.zst"), &["cannot read", "no.jsonl.zst"]);
}

#[test]
fn a_json_file_may_hold_an_array() {
    let folder = Folder::new();
    folder.put("a.json", "\u{feff} [\n {\"text\": \"a\"},\n {\"text\": \"b\"}\n]\n");
    assert_eq!(folder.texts("a.json"), ["a", "b"]);
    assert_eq!(load_bounded(&folder.spec("a.json"), Some(1), 1000).unwrap().len(), 1);
    folder.put("broken.json", "[\n{\"text\": \"a\"},\n{\"text\" 1}]");
    assert_says(&folder.error("broken.json"), &["broken.json, line 3: not valid JSON"]);
    folder.put("open.json", "[{\"text\": \"a\"}");
    assert_says(&folder.error("open.json"), &["open.json, line 1: not valid JSON: EOF"]);
    folder.put("columns.json", "[{\"text\": \"a\"}, {\"label\": 1}]");
    assert_says(&folder.error("columns.json"), &["columns.json, row 2: found the columns [label]"]);
    folder.put("lines.json", "{\"text\": \"a\"}\n{\"text\": \"b\"}\n");
    assert_eq!(folder.texts("lines.json"), ["a", "b"]);
}

#[test]
fn globs_are_sorted_and_the_row_limit_ends_the_reading() {
    let folder = Folder::new();
    folder.put("part-2.jsonl", "{\"text\": \"c\"}\nbroken");
    folder.put("part-1.jsonl", "{\"text\": \"a\"}\n{\"text\": \"b\"}\n");
    folder.put("part-3.jsonl", "broken");
    folder.put("other.txt", "");
    let glob = folder.spec("part-*.jsonl");
    let rows = load_bounded(&glob, Some(3), 1000).unwrap();
    assert_eq!(rows.into_iter().map(text_of).collect::<Vec<_>>(), ["a", "b", "c"]);
    assert_says(&folder.error("part-*.jsonl"), &["part-2.jsonl, line 2"]);
    assert_says(&folder.error("none-*.jsonl"), &["no file matches"]);
    assert_says(&folder.error("[.jsonl"), &["not a valid glob"]);
    folder.put("we[i]rd.jsonl", "{\"text\": \"w\"}");
    assert_eq!(folder.texts("we[i]rd.jsonl"), ["w"]);
}

#[test]
fn what_is_not_data_is_named() {
    let folder = Folder::new();
    assert_says(&folder.error("nothing.jsonl"), &["no data file", "nothing.jsonl", "hf://"]);
    assert_says(&folder.error(""), &["is a directory", "*.jsonl"]);
    folder.put("a.csv", "text\na\n");
    assert_says(&folder.error("a.csv"), &["a.csv: cannot tell the format", ".parquet"]);
    folder.put("empty.jsonl", "\n\n");
    assert_says(&folder.error("empty.jsonl"), &["empty.jsonl\" has no rows"]);
    folder.put("a.jsonl", "{\"text\": \"a\"}");
    let message = load_bounded(&folder.spec("a.jsonl"), Some(0), 1000).unwrap_err().to_string();
    assert_says(&message, &["has no rows"]);
}

fn write_parquet(path: &Path, columns: Vec<(&str, ArrayRef)>) {
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let file = std::fs::File::create(path).unwrap();
    let mut writer = ArrowWriter::try_new(file, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

#[test]
fn parquet_columns_become_the_same_rows() {
    let folder = Folder::new();
    let path = folder.put("a.parquet", "");
    let text: ArrayRef = Arc::new(LargeStringArray::from(vec!["a", "é", "c"]));
    let other: ArrayRef = Arc::new(Int64Array::from(vec![1, 2, 3]));
    write_parquet(&path, vec![("id", other.clone()), ("text", text)]);
    assert_eq!(folder.texts("a.parquet"), ["a", "é", "c"]);
    assert_eq!(load_bounded(&folder.spec("a.parquet"), Some(2), 1000).unwrap().len(), 2);

    let question: ArrayRef = Arc::new(StringArray::from(vec!["q"]));
    let answer: DictionaryArray<Int32Type> = vec!["a"].into_iter().collect();
    let (path, answer) = (folder.put("b.parquet", ""), Arc::new(answer));
    write_parquet(&path, vec![("question", question), ("answer", answer)]);
    let rows = folder.load("b.parquet").unwrap();
    assert_eq!(rows[0].content, conversation(&[("user", "q"), ("assistant", "a")]));

    write_parquet(&folder.put("c.parquet", ""), vec![("label", other)]);
    assert_says(&folder.error("c.parquet"), &["c.parquet, row 1: found the columns [label]"]);
}

#[test]
fn parquet_messages_are_lists_of_structs() {
    let folder = Folder::new();
    let field = |name: &str| Arc::new(Field::new(name, DataType::Utf8, true));
    let column = |values: Vec<Option<&str>>| Arc::new(StringArray::from(values)) as ArrayRef;
    let turns = StructArray::from(vec![
        (field("role"), column(vec![Some("user"), Some("assistant"), Some("user")])),
        (field("content"), column(vec![Some("q"), Some("a"), Some("only")])),
        (field("name"), column(vec![None, None, None])),
    ]);
    let item = Arc::new(Field::new("item", turns.data_type().clone(), true));
    let offsets = OffsetBuffer::from_lengths([2, 1]);
    let messages = ListArray::new(item, offsets, Arc::new(turns), None);
    write_parquet(&folder.put("m.parquet", ""), vec![("messages", Arc::new(messages))]);
    let rows = folder.load("m.parquet").unwrap();
    assert_eq!(rows[0].content, conversation(&[("user", "q"), ("assistant", "a")]));
    assert_eq!(rows[1].content, conversation(&[("user", "only")]));
}

#[test]
fn damaged_parquet_is_an_error_that_names_the_file() {
    let folder = Folder::new();
    let path = folder.put("a.parquet", "");
    let rows: Vec<String> = (0..3000).map(|i| format!("row {i}")).collect();
    let text: ArrayRef = Arc::new(StringArray::from(rows));
    write_parquet(&path, vec![("text", text)]);
    let whole = std::fs::read(&path).unwrap();
    let mut footer = whole.clone();
    footer[whole.len() - 40..whole.len() - 8].fill(0xff);
    let mut length = whole.clone();
    length[whole.len() - 8..whole.len() - 4].fill(0x7f);
    let mut pages = whole.clone();
    pages[4..60].fill(0xff);
    let half = whole[..whole.len() / 2].to_vec();
    let cases = [footer, length, pages, half, b"PAR1".to_vec(), Vec::new(), vec![0; 64]];
    for (i, bytes) in cases.into_iter().enumerate() {
        let name = format!("bad{i}.parquet");
        folder.put(&name, bytes);
        assert_says(&folder.error(&name), &[&name, "is not a Parquet file that can be read"]);
    }
}

/// Whatever byte is wrong: rows or an error, never a panic, never endless memory.
#[test]
fn no_flipped_byte_of_a_parquet_file_panics() {
    let folder = Folder::new();
    let path = folder.put("a.parquet", "");
    let text: ArrayRef = Arc::new(StringArray::from(vec!["one", "two", "three"]));
    write_parquet(&path, vec![("text", text)]);
    let whole = std::fs::read(&path).unwrap();
    for at in 0..whole.len() {
        let mut flipped = whole.clone();
        flipped[at] ^= 0x55;
        folder.put("f.parquet", flipped);
        let _ = folder.load("f.parquet");
    }
}

#[test]
fn a_dataset_of_the_hub_is_loaded_like_a_file() {
    let files = [("train.jsonl", "{\"text\": \"a\"}\n"), ("test.jsonl", "{\"text\": \"b\"}\n")];
    let files = files.into_iter().map(|(name, text)| (name.to_owned(), text.into())).collect();
    let commit = "0123456789abcdef0123456789abcdef01234567".to_owned();
    let hosted = Hosted { id: "o/n".to_owned(), dataset: true, commit, files, ..Hosted::default() };
    let stand_in = StandIn::start(vec![hosted]);
    let cache = tempfile::tempdir().unwrap();
    let hub = stand_in.settings(cache.path(), None);
    let options = LoadOptions { max_samples: None, max_line_bytes: 1000, hub };
    let load = |spec: &str| load_with(spec, &options);
    assert_eq!(text_of(load("hf://datasets/o/n").unwrap().remove(0)), "a");
    assert_eq!(text_of(load("hf://datasets/o/n@main/test").unwrap().remove(0)), "b");
    let message = load("hf://datasets/o/n/validation").unwrap_err().to_string();
    assert_says(&message, &["no split \"validation\", but test, train"]);
}
