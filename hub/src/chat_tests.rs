//! Chat templates: what transformers renders, and what strangers may not do.

use serde_json::json;

use super::*;

/// Template, context and text, rendered by transformers.
const GOLDEN: &str = include_str!("../tests/golden/chat_templates.json");

fn compile(source: &str) -> ChatTemplate {
    ChatTemplate::compile(source, "t.jinja".into(), SpecialTokens::default()).unwrap()
}

fn render(source: &str) -> Result<String, ChatError> {
    compile(source).render(&[Message::new("user", "hi"), Message::new("assistant", "ho")], false)
}

fn load(files: &[(&str, &str)]) -> Result<Option<ChatTemplate>, ChatError> {
    let dir = tempfile::tempdir().unwrap();
    for (name, content) in files {
        std::fs::write(dir.path().join(name), content).unwrap();
    }
    ChatTemplate::load(dir.path())
}

#[test]
fn texts_are_those_of_transformers() {
    let golden: serde_json::Value = serde_json::from_str(GOLDEN).unwrap();
    let cases = golden["cases"].as_array().unwrap();
    assert!(cases.len() >= 30);
    for case in cases {
        let name = &case["name"];
        let template = compile(golden["templates"][name.as_str().unwrap()].as_str().unwrap());
        let messages: Vec<Message> = serde_json::from_value(case["messages"].clone()).unwrap();
        let prompt = case["add_generation_prompt"].as_bool().unwrap();
        let text = template.render(&messages, prompt).unwrap();
        assert_eq!(Some(text.as_str()), case["text"].as_str(), "{name}");
    }
}

#[test]
fn the_template_is_found_in_transformers_order() {
    let config = json!({"chat_template": "config"}).to_string();
    let list = json!({"chat_template": [{"name": "tool_use", "template": "t"},
        {"name": "default", "template": "list"}]});
    let old = json!({"chat_template": "old"}).to_string();
    let text = |files: &[(&str, &str)]| {
        load(files).unwrap().map(|template| template.render(&[], false).unwrap())
    };
    let jinja = ("chat_template.jinja", "jinja");
    let config = ("tokenizer_config.json", config.as_str());
    let old = ("chat_template.json", old.as_str());
    assert_eq!(text(&[jinja, config, old]).as_deref(), Some("jinja"));
    assert_eq!(text(&[config, old]).as_deref(), Some("config"));
    assert_eq!(text(&[("tokenizer_config.json", &list.to_string())]).as_deref(), Some("list"));
    assert_eq!(text(&[("tokenizer_config.json", "{}"), old]).as_deref(), Some("old"));
    assert_eq!(text(&[("tokenizer_config.json", "{}")]), None);
    assert_eq!(text(&[]), None);
}

#[test]
fn templates_of_the_wrong_shape_name_the_file() {
    let of = |config: serde_json::Value| {
        load(&[("tokenizer_config.json", &config.to_string())]).unwrap_err().to_string()
    };
    let message = of(json!({"chat_template": 7}));
    assert!(message.contains("tokenizer_config.json") && message.contains("holds 7"), "{message}");
    let message = of(json!({"chat_template": [{"name": "rag", "template": "x"}]}));
    assert!(message.contains("[rag]") && message.contains("default"), "{message}");
    let message = load(&[("tokenizer_config.json", "{")]).unwrap_err().to_string();
    assert!(message.contains("tokenizer_config.json is not valid JSON"), "{message}");
}

#[test]
fn special_tokens_are_passed_by_their_roles() {
    let config = json!({"bos_token": "<s>", "eos_token": {"content": "</s>"}, "pad_token": null});
    let template = load(&[
        ("chat_template.jinja", "{{ bos_token }}x{{ eos_token }}{{ pad_token }}"),
        ("tokenizer_config.json", &config.to_string()),
    ]);
    assert_eq!(template.unwrap().unwrap().render(&[], false).unwrap(), "<s>x</s>");
}

#[test]
fn errors_name_the_file_and_the_line() {
    let syntax = "line one\n{% if %}\n";
    let error = ChatTemplate::compile(syntax, "t.jinja".into(), SpecialTokens::default());
    let message = error.unwrap_err().to_string();
    assert!(message.starts_with("chat template t.jinja, line 2: syntax error"), "{message}");
    let message =
        render("\n\n{{ raise_exception('roles must alternate') }}").unwrap_err().to_string();
    assert_eq!(message, "chat template t.jinja, line 3: roles must alternate");
    let message = render("\n{{ messages[9].role.x }}").unwrap_err().to_string();
    assert!(message.contains("t.jinja, line 2"), "{message}");
    let message = render("{{ nonesuch() }}").unwrap_err().to_string();
    assert!(message.contains("nonesuch"), "{message}");
}

#[test]
fn endless_and_enormous_work_is_stopped() {
    let forever = "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}";
    let doubling = "{% set ns = namespace(x='ab') %}{% for i in range(90) %}\
        {% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}";
    let factor = "{{ 'ab' * 4000000000 }}";
    for source in [forever, doubling, factor] {
        let started = std::time::Instant::now();
        let message = render(source).unwrap_err().to_string();
        assert!(message.contains("t.jinja, line 1"), "{message}");
        assert!(started.elapsed().as_secs() < 20, "{source}");
    }
    assert!(matches!(render(forever), Err(ChatError::OutOfFuel { .. })));
}

#[test]
fn deep_recursion_and_deep_values_are_errors() {
    let macros = "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}";
    assert!(render(macros).is_err());
    let deeper = "{% for i in range(90000) %}{% set ns.x = [ns.x] %}{% endfor %}";
    let nested = format!("{{% set ns = namespace(x=[]) %}}{deeper}{{{{ ns.x | tojson }}}}");
    let message = render(&nested).unwrap_err().to_string();
    assert!(message.contains("nested too deeply"), "{message}");
    assert!(render(&format!("{{% set ns = namespace(x=[]) %}}{}", deeper.repeat(9))).is_err());
}

/// As long as a template may be; the engine goes down one step for each part.
#[test]
fn chains_in_a_template_do_not_exhaust_the_stack() {
    let fill = |start: &str, part: &str, end: &str| {
        let times = (MAX_SOURCE - start.len() - end.len()) / part.len();
        format!("{start}{}{end}", part.repeat(times))
    };
    let compile =
        |source: &str| ChatTemplate::compile(source, "t.jinja".into(), SpecialTokens::default());
    for (part, end) in [("-", "1 }}"), ("not ", "1 }}"), ("+1", " }}"), ("|e", " }}")] {
        let start = if matches!(part, "-" | "not ") { "{{ " } else { "{{ 1" };
        assert!(compile(&fill(start, part, end)).is_ok(), "{part}");
    }
    assert!(compile(&fill("{%if 0%}", "{%elif 0%}", "{%endif%}")).is_ok());
    assert!(compile(&fill("", "{%if 0%}", "")).is_err());
    assert!(compile(&fill("{{ ", "(", "")).is_err());
    let message = compile(&" ".repeat(MAX_SOURCE + 1)).unwrap_err().to_string();
    assert!(message.contains("65537 bytes"), "{message}");
}

#[test]
fn a_template_sees_no_files() {
    assert!(render("{% include '/etc/passwd' %}").is_err());
    assert!(render("{% extends 'chat_template.jinja' %}").is_err());
}

#[test]
fn the_date_is_written_and_a_bad_format_is_an_error() {
    let year: i32 = render("{{ strftime_now('%Y') }}").unwrap().parse().unwrap();
    assert!(year >= 2024);
    assert!(render("{{ strftime_now('%') }}").is_err());
}

#[test]
fn generation_marks_change_nothing() {
    let marked = "{% for m in messages %}{%- generation -%} {{ m.content }} \
        {%- endgeneration %}{% endfor %}{% set generation = 1 %}{{ generation }}";
    assert_eq!(render(marked).unwrap(), "hiho1");
}
