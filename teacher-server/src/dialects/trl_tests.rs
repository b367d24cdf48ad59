//! The bytes of TRL's server: written down from its source and checked against its client.

use std::time::Duration;

use proto::convert::Times;

use super::*;
use crate::dialects::MAX_SEQUENCES;
use crate::dialects::ask::Scored;
use crate::settings::Settings;
use crate::shutdown::Calls;
use crate::testing::{facts as model, scores_of};

fn facts() -> TeacherFacts {
    Settings::DEFAULT.resolve(&model(32)).unwrap()
}

fn read(body: &str) -> Result<Question, Problem> {
    Question::read(body.as_bytes(), &facts())
}

async fn written(question: Question, scores: Vec<Option<Scores>>) -> String {
    let scored = Scored { scores, times: Times::default() };
    let shape = question.shape;
    let call = Calls::default().begin().unwrap();
    let patience = Duration::from_secs(5);
    let write = |answer| shape.write(scored, answer);
    let answer = Answer::start(Times::default(), patience, call, write);
    let body = axum::body::to_bytes(answer.into_body(), usize::MAX).await.unwrap();
    String::from_utf8(body.to_vec()).unwrap()
}

fn example() -> Vec<Option<Scores>> {
    vec![
        Some(scores_of(&[([(2, -0.25), (4, -1.5)], -0.25), ([(4, -0.5), (2, -1.0)], -6.0)])),
        Some(scores_of(&[([(3, -0.125), (1, -2.5)], -0.125)])),
    ]
}

fn request(format: &str) -> String {
    format!(
        "{{\"sequences\":[[5,7,2,9],[5,3]],\"prompt_lengths\":[2,1],\"top_logprobs\":2,\
         \"temperature\":1.0,\"response_format\":\"{format}\",\"more\":null}}"
    )
}

#[tokio::test]
async fn a_binary_answer_is_rectangular_and_in_base64() {
    let wanted = "{\"logprobs_b64\":\"AACAvgAAwL8AAAC/AACAvwAAAL4AACDAAACA/wAAgP8=\",\
         \"token_ids_b64\":\"AgAAAAQAAAAEAAAAAgAAAAMAAAABAAAAAAAAAAAAAAA=\",\
         \"actual_logprobs_b64\":\"AACAvgAAwMAAAAC+AACA/w==\",\
         \"actual_token_ids_b64\":\"AgAAAAkAAAADAAAAAAAAAA==\",\
         \"shape\":[2, 2, 2],\"completion_lengths\":[2, 1]}";
    assert_eq!(written(read(&request("binary")).unwrap(), example()).await, wanted);
}

#[tokio::test]
async fn an_answer_in_json_lists_the_best_and_what_stands_there() {
    let wanted = "{\"logprobs\":[[[-0.25,-1.5],[-0.5,-1.0,-6.0]],[[-0.125,-2.5]]],\
         \"logprob_token_ids\":[[[2,4],[4,2,9]],[[3,1]]]}";
    assert_eq!(written(read(&request("json")).unwrap(), example()).await, wanted);
    assert_eq!(written(read(&request("whatever")).unwrap(), example()).await, wanted);
}

#[tokio::test]
async fn what_has_nothing_before_it_or_nothing_to_predict_is_empty() {
    let body = |format: &str| {
        format!(
            "{{\"sequences\":[[5,7],[5],[5,7]],\"prompt_lengths\":[0,0,2],\"top_logprobs\":2,\
             \"response_format\":\"{format}\"}}"
        )
    };
    let scored = || vec![Some(scores_of(&[([(7, -0.25), (4, -1.5)], -0.25)])), None, None];
    let wanted = "{\"logprobs\":[[[],[-0.25,-1.5]],[[]],[]],\
         \"logprob_token_ids\":[[[],[7,4]],[[]],[]]}";
    assert_eq!(written(read(&body("json")).unwrap(), scored()).await, wanted);
    // [3, 2, 2]: -inf -inf | -0.25 -1.5 | the other two sequences have nothing.
    let binary = written(read(&body("binary")).unwrap(), scored()).await;
    let unknown = "AACA/wAAgP8";
    assert!(binary.starts_with(&format!("{{\"logprobs_b64\":\"{unknown}AAIC+AADAvw")), "{binary}");
    assert!(binary.ends_with("\"shape\":[3, 2, 2],\"completion_lengths\":[2, 1, 0]}"), "{binary}");
    let nothing = "{\"sequences\":[],\"prompt_lengths\":[]}";
    let wanted = "{\"logprobs\":[],\"logprob_token_ids\":[]}";
    assert_eq!(written(read(nothing).unwrap(), vec![]).await, wanted);
}

#[tokio::test]
async fn of_no_entries_the_realised_token_is_left() {
    let body = "{\"sequences\":[[5,9]],\"prompt_lengths\":[1],\"top_logprobs\":0}";
    let scored = vec![Some(scores_of(&[([(4, -0.5), (2, -1.0)], -6.0)]))];
    let wanted = "{\"logprobs\":[[[-6.0]]],\"logprob_token_ids\":[[[9]]]}";
    assert_eq!(written(read(body).unwrap(), scored).await, wanted);
}

#[test]
fn what_cannot_be_meant_is_refused_by_name() {
    for (body, says) in [
        ("", "EOF"),
        ("7", "struct Body"),
        ("{\"prompt_lengths\":[]}", "missing field `sequences`"),
        ("{\"sequences\":[[1]]}", "missing field `prompt_lengths`"),
        ("{\"sequences\":[[1]],\"prompt_lengths\":[]}", "1 sequences and 0 prompt_lengths"),
        ("{\"sequences\":[[1]],\"prompt_lengths\":[2]}", "prompt_lengths[0] is 2"),
        ("{\"sequences\":[[1]],\"prompt_lengths\":[-1]}", "-1"),
        ("{\"sequences\":[[-1]],\"prompt_lengths\":[1]}", "-1"),
        ("{\"sequences\":[[1],[]],\"prompt_lengths\":[0,0]}", "sequence 1: "),
        ("{\"sequences\":[[1],[32]],\"prompt_lengths\":[1,1]}", "sequence 1: "),
        ("{\"sequences\":[[1,2]],\"prompt_lengths\":[1],\"top_logprobs\":1025}", "at most 1024"),
        ("{\"sequences\":[[1,2]],\"prompt_lengths\":[1],\"temperature\":-1}", "temperature"),
        ("{\"sequences\":[[1,2]],\"prompt_lengths\":[1],\"temperature\":null}", "f64"),
        ("{\"sequences\":[[1,2]],\"prompt_lengths\":[1],\"temperature\":1e-50}", "temperature"),
    ] {
        let problem = read(body).unwrap_err();
        assert_eq!(problem.status.as_u16(), 400, "{body}");
        assert!(problem.message.contains(says), "{body}: {}", problem.message);
    }
}

#[test]
fn an_answer_has_bounds() {
    let mut facts = facts();
    facts.limits.max_held_bytes_per_stream = 3000;
    let read = |body: &str| Question::read(body.as_bytes(), &facts);
    // A row of 32 takes 8 + 32 · 8 = 264 bytes.
    let body = |tokens: usize| {
        let ids = vec!["1"; tokens].join(",");
        format!("{{\"sequences\":[[{ids}]],\"prompt_lengths\":[1]}}")
    };
    assert!(read(&body(12)).is_ok());
    let refused = read(&body(13)).unwrap_err().message;
    assert!(refused.contains("3168 bytes") && refused.contains("3000"), "{refused}");
    // The padding of a rectangle counts, though nothing is computed for it.
    let lone = vec!["[1]"; 20].join(",");
    let lengths = vec!["1"; 21].join(",");
    let padded = format!(
        "{{\"sequences\":[{lone},[1,1,1,1]],\"prompt_lengths\":[{lengths}],\"top_logprobs\":8,\
         \"response_format\":\"binary\"}}"
    );
    let refused = read(&padded).unwrap_err().message;
    assert!(refused.contains("rectangle"), "{refused}");
    assert!(read(&padded.replace("binary", "json")).is_ok());
    let many = vec!["[1]"; MAX_SEQUENCES + 1].join(",");
    let refused = read(&format!("{{\"sequences\":[{many}],\"prompt_lengths\":[]}}")).unwrap_err();
    assert!(refused.message.contains("more than 4096 sequences"), "{}", refused.message);
}

#[test]
fn a_list_of_the_fields_values_is_no_request() {
    let problem = read("[[],[]]").unwrap_err();
    assert!(problem.status == 400 && problem.message.contains("object"), "{}", problem.message);
}
