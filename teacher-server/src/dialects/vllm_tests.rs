//! The bytes of a completion, as vLLM's protocol has them, and what is refused.

use std::time::Duration;

use proto::convert::Times;
use serde_json::Value;

use super::*;
use crate::dialects::body::Answer;
use crate::dialects::{Scored, Write as _};
use crate::settings::Settings;
use crate::shutdown::Calls;
use crate::testing::{FakeText, facts as model, scores_of};

fn facts() -> TeacherFacts {
    Settings::DEFAULT.resolve(&model(128)).unwrap()
}

fn read(body: &str) -> Result<Question, Problem> {
    Question::read(body.as_bytes(), &facts())
}

/// The completion of one prompt whose rows are given as (entries, the realised token's).
async fn completed(body: &str, prompt: &[u32], rows: &[([(u32, f32); 2], f32)]) -> (String, Value) {
    let scores = scores_of(rows);
    let scored =
        Scored { scores: vec![(!rows.is_empty()).then_some(scores)], times: Times::default() };
    let style = read(body).unwrap().style;
    let text = Arc::new(FakeText { vocab_size: 128 });
    let serving = Arc::new(Serving { facts: facts(), text });
    let call = Calls::default().begin().unwrap();
    let prompts = vec![prompt.to_vec()];
    let completion = write::Completion { prompts, style, serving };
    let write = |answer| completion.write(scored, answer);
    let answer = Answer::start(Times::default(), Duration::from_secs(5), call, write);
    let body = axum::body::to_bytes(answer.into_body(), usize::MAX).await.unwrap();
    let text = String::from_utf8(body.to_vec()).unwrap();
    let parsed = serde_json::from_str(&text).unwrap();
    (text, parsed)
}

/// "ab" with 98 outside the best two, and what would follow.
const ROWS: [([(u32, f32); 2], f32); 2] =
    [([(99, -0.5), (100, -1.25)], -3.5), ([(97, -0.75), (98, -1.5)], f32::NAN)];

#[tokio::test]
async fn the_realised_token_comes_first_and_the_first_position_is_null() {
    let body = "{\"prompt\":[97,98],\"prompt_logprobs\":2,\"max_tokens\":1,\"temperature\":1.0}";
    let (text, parsed) = completed(body, &[97, 98], &ROWS).await;
    let wanted = "\"prompt_logprobs\":[null,{\
        \"98\":{\"logprob\":-3.5,\"rank\":3,\"decoded_token\":\"b\"},\
        \"99\":{\"logprob\":-0.5,\"rank\":1,\"decoded_token\":\"c\"},\
        \"100\":{\"logprob\":-1.25,\"rank\":2,\"decoded_token\":\"d\"}}]";
    assert!(text.contains(wanted), "{text}");
    assert_eq!((&parsed["object"], &parsed["model"]), (&"text_completion".into(), &"fake".into()));
    let choice = &parsed["choices"][0];
    assert_eq!((&choice["text"], &choice["finish_reason"]), (&"a".into(), &"length".into()));
    assert_eq!((&choice["logprobs"], &choice["index"]), (&Value::Null, &0.into()));
    assert_eq!(parsed["usage"]["prompt_tokens"], 2);
    assert_eq!(parsed["usage"]["total_tokens"], 3);
    assert_eq!(parsed["usage"]["completion_tokens"], 1);
}

#[tokio::test]
async fn a_realised_token_among_the_best_is_there_once_with_its_rank() {
    let body = "{\"prompt\":[97,100],\"prompt_logprobs\":2,\"max_tokens\":0}";
    let (text, parsed) = completed(body, &[97, 100], &ROWS[..1]).await;
    // What was given as the realised token's own, not what the list says.
    let wanted = "[null,{\"100\":{\"logprob\":-3.5,\"rank\":2,\"decoded_token\":\"d\"},\
        \"99\":{\"logprob\":-0.5,\"rank\":1,\"decoded_token\":\"c\"}}]";
    assert!(text.contains(wanted), "{text}");
    assert_eq!(parsed["choices"][0]["text"], "");
    assert_eq!(parsed["usage"]["completion_tokens"], 0);
}

#[tokio::test]
async fn of_no_entries_the_realised_token_is_left_and_one_token_has_none() {
    let body = "{\"prompt\":[97,98],\"prompt_logprobs\":0,\"max_tokens\":0}";
    let (text, _) = completed(body, &[97, 98], &ROWS[..1]).await;
    let wanted = "[null,{\"98\":{\"logprob\":-3.5,\"rank\":3,\"decoded_token\":\"b\"}}]";
    assert!(text.contains(wanted), "{text}");
    let (text, _) = completed(body, &[97], &[]).await;
    assert!(text.contains("\"prompt_logprobs\":[null]"), "{text}");
}

#[tokio::test]
async fn an_echo_has_the_prompt_and_one_token_more() {
    let body = "{\"prompt\":[97,98],\"echo\":true,\"logprobs\":1,\"max_tokens\":1}";
    let (text, parsed) = completed(body, &[97, 98], &ROWS).await;
    let wanted = "\"logprobs\":{\"text_offset\":[0,1,2],\"token_logprobs\":[null,-3.5,-0.75],\
        \"tokens\":[\"a\",\"b\",\"a\"],\"top_logprobs\":[null,{\"b\":-3.5,\"c\":-0.5},{\"a\":-0.75}]}";
    assert!(text.contains(wanted), "{text}");
    assert_eq!(parsed["choices"][0]["text"], "aba");
    // Who echoes with logprobs has both forms.
    assert_eq!(parsed["choices"][0]["prompt_logprobs"][1]["99"]["logprob"], -0.5);
    let body = "{\"prompt\":[97,98],\"echo\":true,\"logprobs\":1,\"max_tokens\":0,\
        \"return_tokens_as_token_ids\":true,\"return_token_ids\":true}";
    let (text, parsed) = completed(body, &[97, 98], &ROWS[..1]).await;
    let wanted = "\"tokens\":[\"token_id:97\",\"token_id:98\"],\
        \"top_logprobs\":[null,{\"token_id:98\":-3.5,\"token_id:99\":-0.5}]}";
    assert!(text.contains(wanted), "{text}");
    assert_eq!(parsed["choices"][0]["prompt_token_ids"], serde_json::json!([97, 98]));
    assert_eq!(parsed["choices"][0]["token_ids"], serde_json::json!([]));
}

#[test]
fn prompts_come_in_four_forms() {
    let prompt = |prompt: &str| {
        let read = read(&format!("{{\"prompt\":{prompt},\"prompt_logprobs\":1}}"));
        read.map(|question| question.prompt).map_err(|problem| problem.message)
    };
    assert_eq!(prompt("[1,2]"), Ok(Prompt::Ids(vec![1, 2])));
    assert_eq!(prompt("[[1,2],[3]]"), Ok(Prompt::ManyIds(vec![vec![1, 2], vec![3]])));
    assert_eq!(prompt("\"a\\nb\""), Ok(Prompt::Text("a\nb".into())));
    assert_eq!(prompt("[\"a\",\"b\"]"), Ok(Prompt::ManyTexts(vec!["a".into(), "b".into()])));
    for (wrong, says) in [
        ("[]", "empty"),
        ("[1,[2]]", "mixes"),
        ("[\"a\",1]", "mixes"),
        ("[[\"a\"]]", "u32"),
        ("[-1]", "-1"),
        ("[4294967296]", "4294967296"),
        ("null", "null"),
        ("{}", "map"),
    ] {
        let refused = prompt(wrong).unwrap_err();
        assert!(refused.contains(says), "{wrong}: {refused}");
    }
}

#[test]
fn temperature_0_and_none_are_the_model_as_it_is() {
    let read =
        |more: &str| read(&format!("{{\"prompt\":[1],\"prompt_logprobs\":1{more}}}")).unwrap();
    for (more, temperature) in [
        ("", 1.0),
        (",\"temperature\":null", 1.0),
        (",\"temperature\":0", 1.0),
        (",\"temperature\":5", 5.0),
        // To be refused with the others that are too low.
        (",\"temperature\":1e-50", 0.0),
    ] {
        assert_eq!(read(more).temperature, temperature, "{more}");
    }
    assert_eq!((read("").k, read("").style.prompt_logprobs), (1, Some(1)));
    assert!(read("").style.next, "without max_tokens there is one token more");
}

#[test]
fn what_this_server_does_not_do_is_refused_by_name() {
    for (more, field, status) in [
        (",\"model\":\"other\"", "model", 404),
        (",\"n\":2", "n", 400),
        (",\"stream\":true", "stream", 400),
        (",\"max_tokens\":2", "max_tokens", 400),
        (",\"max_tokens\":-1", "max_tokens", 400),
        (",\"logprobs\":-2", "logprobs", 400),
        (",\"logprobs\":1025", "logprobs", 400),
    ] {
        let body = format!("{{\"prompt\":[1],\"prompt_logprobs\":1{more}}}");
        let problem = read(&body).unwrap_err();
        assert_eq!((problem.field, problem.status.as_u16()), (Some(field), status), "{more}");
    }
    for body in ["{\"prompt\":[1]}", "{\"prompt\":[1],\"max_tokens\":100}"] {
        let problem = read(body).unwrap_err();
        assert!(problem.message.contains("does not generate"), "{}", problem.message);
    }
    for model in ["null", "\"\"", "\"fake\""] {
        let body = format!("{{\"model\":{model},\"prompt\":[1],\"prompt_logprobs\":-1}}");
        assert_eq!(read(&body).unwrap().k, 128);
    }
}

#[test]
fn a_list_of_the_fields_values_is_no_request() {
    let problem = read("[null,[1],1,0,null,false,null,null,null,null,null]").unwrap_err();
    assert!(problem.status == 400 && problem.message.contains("object"), "{}", problem.message);
}
