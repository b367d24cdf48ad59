//! From rows to sequences: which ids, and which of them are learned.

use std::path::PathBuf;

use hub::chat::{ChatTemplate, Message};
use hub::testing::write_tiny_tokenizer;
use hub::tokenizer::{SpecialTokens, Tokenizer};
use test_support::shared;

use super::*;
use crate::config::{ChatTemplateUse, LossOn};

/// Lengths and counts found by encoding the parts of each row apart, in Python.
const GOLDEN: &str = include_str!("golden/gsm8k_masks.json");

struct Tiny {
    tokenizer: Tokenizer,
    template: ChatTemplate,
}

fn tiny() -> Tiny {
    let dir = tempfile::tempdir().unwrap();
    write_tiny_tokenizer(dir.path());
    let template = ChatTemplate::load(dir.path()).unwrap().unwrap();
    Tiny { tokenizer: Tokenizer::load(dir.path()).unwrap(), template }
}

fn with_template(source: &str) -> Tiny {
    let template = ChatTemplate::compile(source, "t.jinja".into(), SpecialTokens::default());
    Tiny { template: template.unwrap(), ..tiny() }
}

const COMPLETION: TokenizeOptions = TokenizeOptions {
    loss_on: LossOn::Completion,
    chat_template: ChatTemplateUse::Auto,
    max_length: 1024,
};

fn row(content: RowContent) -> Row {
    Row { content, place: Place { file: PathBuf::from("d.jsonl").into(), number: 7, unit: "line" } }
}

fn conversation(turns: &[(&str, &str)]) -> RowContent {
    let messages = turns.iter().map(|(role, content)| Message::new(*role, *content));
    RowContent::Conversation(messages.collect())
}

impl Tiny {
    fn run(&self, content: RowContent, options: &TokenizeOptions) -> Result<Tokenized, DataError> {
        tokenize(&[row(content)], &self.tokenizer, Some(&self.template), options)
    }

    /// The row's text with what is learned in brackets.
    fn marked(&self, content: RowContent, options: &TokenizeOptions) -> String {
        let done = self.run(content, options).unwrap();
        let sequence = &done.sequences[0];
        let mut marked = String::new();
        let mut run: Vec<u32> = Vec::new();
        for (i, id) in sequence.ids.iter().enumerate() {
            let learned = sequence.loss_mask[i];
            if learned && run.is_empty() {
                marked.push('[');
            }
            if learned {
                run.push(*id);
            }
            let last = !sequence.loss_mask.get(i + 1).copied().unwrap_or(false);
            if learned && last {
                marked.push_str(&self.tokenizer.decode(&run).unwrap());
                marked.push(']');
                run.clear();
            }
            if !learned {
                marked.push_str(&self.tokenizer.decode(&[*id]).unwrap());
            }
        }
        marked
    }

    fn error(&self, content: RowContent, options: &TokenizeOptions) -> String {
        self.run(content, options).unwrap_err().to_string()
    }
}

#[test]
fn each_shape_learns_its_answer() {
    let tiny = tiny();
    let marked = |content| tiny.marked(content, &COMPLETION);
    assert_eq!(marked(RowContent::Text("hello world".into())), "[hello world]");
    let (prompt, completion) = ("2 + 2 =".to_owned(), " 4".to_owned());
    assert_eq!(marked(RowContent::Completion { prompt, completion }), "2 + 2 =[ 4]");
    let (instruction, response) = ("say it".to_owned(), "hello".to_owned());
    assert_eq!(
        marked(RowContent::Instruction { instruction, response }),
        "Instruction: say it\nResponse: [hello]"
    );
    assert_eq!(
        marked(conversation(&[("user", "q?"), ("assistant", "a.")])),
        "<|im_start|>user\nq?<|im_end|>\n<|im_start|>assistant\n[a.<|im_end|>]\n"
    );
    let turns = [
        ("system", "s"),
        ("user", "q"),
        ("assistant", "a"),
        ("user", "r"),
        ("assistant", "b"),
        ("user", "unanswered"),
    ];
    assert_eq!(
        marked(conversation(&turns)),
        "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n\
         [a<|im_end|>]\n<|im_start|>user\nr<|im_end|>\n<|im_start|>assistant\n[b<|im_end|>]\n\
         <|im_start|>user\nunanswered<|im_end|>\n"
    );
}

#[test]
fn the_options_choose_template_and_targets() {
    let tiny = tiny();
    let pair = || conversation(&[("user", "q"), ("assistant", "a"), ("user", "r")]);
    let plain = TokenizeOptions { chat_template: ChatTemplateUse::None, ..COMPLETION };
    assert_eq!(tiny.marked(pair(), &plain), "Instruction: q\nResponse: [a]\nInstruction: r");
    let all = TokenizeOptions { loss_on: LossOn::All, ..COMPLETION };
    assert_eq!(
        tiny.marked(conversation(&[("user", "q"), ("assistant", "a")]), &all),
        "[<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n]"
    );
    let plain_all = TokenizeOptions { chat_template: ChatTemplateUse::None, ..all };
    assert_eq!(tiny.marked(pair(), &plain_all), "[Instruction: q\nResponse: a\nInstruction: r]");
    let model = TokenizeOptions { chat_template: ChatTemplateUse::Model, ..COMPLETION };
    let (instruction, response) = ("q".to_owned(), "a".to_owned());
    assert_eq!(
        tiny.marked(RowContent::Instruction { instruction, response }, &model),
        "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n[a<|im_end|>]\n"
    );
    let message = tiny.error(RowContent::Text("t".into()), &model);
    assert!(message.contains("d.jsonl, line 7 is plain text"), "{message}");
    let none = tokenize(&[row(pair())], &tiny.tokenizer, None, &COMPLETION);
    let message = none.unwrap_err().to_string();
    assert!(message.contains("line 7") && message.contains("--chat-template none"), "{message}");
}

#[test]
fn a_token_across_the_boundary_belongs_to_the_answer() {
    // "hello" is one token.
    let (prompt, completion) = ("say hel".to_owned(), "lo world".to_owned());
    let marked = tiny().marked(RowContent::Completion { prompt, completion }, &COMPLETION);
    assert_eq!(marked, "say [hello world]");
}

#[test]
fn characters_of_several_tokens_are_learned_whole() {
    let (prompt, completion) = ("é".to_owned(), "ü🙂".to_owned());
    let done = tiny().run(RowContent::Completion { prompt, completion }, &COMPLETION).unwrap();
    let mask = &done.sequences[0].loss_mask;
    assert_eq!(mask, &[false, false, true, true, true, true, true, true]);
}

/// Qwen3's manner: an empty thought before the last answer only.
const THINKING: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n\
    {%+ if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}\
    {{ m.content }}<|im_end|>\n{% endfor %}\
    {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

#[test]
fn a_template_that_writes_the_last_turn_differently_still_tells_every_answer() {
    let mut tiny = with_template(THINKING);
    let turns = [("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", "b")];
    let text =
        tiny.template.render(&turns.map(|(role, content)| Message::new(role, content)), false);
    assert!(text.unwrap().contains("assistant\na<|im_end|>"));
    assert_eq!(
        tiny.marked(conversation(&turns), &COMPLETION),
        "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n[a<|im_end|>]\n\
         <|im_start|>user\nr<|im_end|>\n<|im_start|>assistant\n\
         [<think>\n\n</think>\n\nb<|im_end|>]\n"
    );
    // Without a closing token there is nothing to tell the first answer's end by.
    let unclosed = THINKING.replace("<|im_end|>", "<end>");
    tiny.template = with_template(&unclosed).template;
    let message = tiny.error(conversation(&turns), &COMPLETION);
    assert!(message.contains("line 7: chat template t.jinja writes message 2"), "{message}");
    assert!(message.contains("--loss-on all"), "{message}");
    let all = TokenizeOptions { loss_on: LossOn::All, ..COMPLETION };
    assert!(tiny.run(conversation(&turns), &all).is_ok());
}

#[test]
fn a_template_whose_beginning_depends_on_its_end_is_refused() {
    let tiny =
        with_template("{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}");
    let message = tiny.error(conversation(&[("user", "q"), ("assistant", "a")]), &COMPLETION);
    assert!(message.contains("message 2") && message.contains("--loss-on all"), "{message}");
    let tiny = with_template("{{ raise_exception('no systems here') }}");
    let message = tiny.error(conversation(&[("system", "q")]), &COMPLETION);
    assert!(message.starts_with("d.jsonl, line 7: chat template t.jinja, line 1: no systems"));
}

#[test]
fn what_is_cut_and_what_is_left_out_is_counted() {
    let tiny = tiny();
    let pair = |prompt: &str, completion: &str| {
        let (prompt, completion) = (prompt.to_owned(), completion.to_owned());
        row(RowContent::Completion { prompt, completion })
    };
    // One token a letter.
    let rows = [
        pair("abc", "defg"),
        pair("abcdefgh", "ij"),
        pair("ab", ""),
        row(RowContent::Text(String::new())),
        row(RowContent::Text("x".to_owned())),
        pair("abc", "de"),
    ];
    let options = TokenizeOptions { max_length: 5, ..COMPLETION };
    let done = tokenize(&rows, &tiny.tokenizer, None, &options).unwrap();
    let wanted = TokenizeReport { rows: 6, truncated: 2, skipped: 4, tokens: 10, scored: 4 };
    assert_eq!(done.report, wanted);
    assert_eq!(done.sequences.len(), 2);
    assert_eq!(done.sequences[0], done.sequences[1]);
    let message = tokenize(&rows[1..3], &tiny.tokenizer, None, &options).unwrap_err().to_string();
    assert!(message.contains("none of the 2 rows") && message.contains("5 tokens"), "{message}");
}

#[test]
fn a_row_past_the_models_positions_is_named() {
    let tiny = tiny();
    // One token a letter.
    let rows = ["abcd", "abcde", "abcdef"].map(|text| row(RowContent::Text(text.to_owned())));
    let done = tokenize(&rows, &tiny.tokenizer, None, &COMPLETION).unwrap();
    done.fit(6, 1024).unwrap();
    let message = done.fit(4, 1024).unwrap_err().to_string();
    for piece in ["d.jsonl, line 7 has 5 tokens", "only 4 positions", "give --max-length 4"] {
        assert!(message.contains(piece), "no {piece:?} in: {message}");
    }
}

/// Lines are bounded where they are read; the text of a Parquet row, and what a template makes of a
/// row, are bounded here.
#[test]
fn a_text_at_the_bound_is_cut_and_one_beyond_it_is_refused_with_its_place() {
    let text = |bytes: usize| RowContent::Text("a ".repeat(bytes / 2) + &"a".repeat(bytes % 2));
    let done = tiny().run(text(MAX_LINE_BYTES), &COMPLETION).unwrap();
    assert_eq!((done.sequences[0].len(), done.report.truncated), (1024, 1));
    let error = tiny().run(text(MAX_LINE_BYTES + 1), &COMPLETION).unwrap_err().to_string();
    assert!(error.contains("d.jsonl") && error.contains("67108864 bytes"), "{error}");
}

#[test]
fn rows_with_nothing_to_learn_are_refused_with_the_true_cause() {
    let tiny = tiny();
    let refusal = |content: &[RowContent], options: &TokenizeOptions| {
        let rows: Vec<Row> = content.iter().cloned().map(row).collect();
        let done = tokenize(&rows, &tiny.tokenizer, Some(&tiny.template), options);
        done.unwrap_err().to_string()
    };
    let asked = conversation(&[("user", "q?")]);
    let message = refusal(&[asked.clone(), asked.clone()], &COMPLETION);
    assert!(message.contains("none of the 2 rows has an assistant message"), "{message}");
    assert!(message.contains("d.jsonl, line 7") && message.contains("--loss-on all"), "{message}");
    assert!(!message.contains("--max-length"), "{message}");
    let empty = RowContent::Text(String::new());
    let message = refusal(&[asked, empty.clone()], &COMPLETION);
    assert!(message.contains("none of the 2 rows") && message.contains("not empty"), "{message}");
    assert!(!message.contains("--max-length"), "{message}");
    let all = TokenizeOptions { loss_on: LossOn::All, ..COMPLETION };
    let message = refusal(&[empty], &all);
    assert!(!message.contains("--loss-on"), "{message}");
}

#[test]
fn many_rows_keep_their_order() {
    let tiny = tiny();
    let rows: Vec<Row> = (0..1000).map(|i| row(RowContent::Text(format!("row {i}")))).collect();
    let done = tokenize(&rows, &tiny.tokenizer, None, &COMPLETION).unwrap();
    for (i, sequence) in done.sequences.iter().enumerate() {
        assert_eq!(tiny.tokenizer.decode(&sequence.ids).unwrap(), format!("row {i}"));
    }
    assert_eq!(done.report.rows, 1000);
}

#[test]
fn masks_and_counts_of_gsm8k_are_those_of_python() {
    let test = "masks_and_counts_of_gsm8k_are_those_of_python";
    let (Some(dir), Some(data)) =
        (shared("models/gsm8k-student", test), shared("data/gsm8k/train.jsonl", test))
    else {
        return;
    };
    let golden: serde_json::Value = serde_json::from_str(GOLDEN).unwrap();
    let tokenizer = Tokenizer::load(&dir).unwrap();
    let template = ChatTemplate::load(&dir).unwrap();
    let rows = load(data.to_str().unwrap(), Some(500)).unwrap();
    for (max_length, wanted) in golden["by_max_length"].as_object().unwrap() {
        let options = TokenizeOptions { max_length: max_length.parse().unwrap(), ..COMPLETION };
        let done = tokenize(&rows, &tokenizer, template.as_ref(), &options).unwrap();
        assert_eq!(&serde_json::to_value(done.report).unwrap(), wanted, "{max_length}");
        if max_length == "1024" {
            let parts = golden["parts_of_first_rows"].as_array().unwrap();
            for (sequence, parts) in done.sequences.iter().zip(parts) {
                let parts: [usize; 3] = serde_json::from_value(parts.clone()).unwrap();
                let mask = [vec![false; parts[0]], vec![true; parts[1]], vec![false; parts[2]]];
                assert_eq!(sequence.loss_mask, mask.concat());
            }
        }
    }
}
