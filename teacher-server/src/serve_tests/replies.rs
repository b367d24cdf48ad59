//! What comes back for a good request.

use std::time::Duration;

use distill::codec::Codec;
use distill::signal::Entries;
use prost::Message as _;
use proto::convert::{ScoreJob, score_request};
use proto::v1::ScoreReply;
use tonic::Code;

use super::harness::{CLASSES, Server, assembler, assert_right, job};
use crate::settings::Settings;
use crate::testing::FakeScorer;

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_what_the_model_says_at_every_position_and_setting() {
    let server = Server::start(FakeScorer::new(CLASSES), Settings::DEFAULT).await;
    let mut stream = server.score().await;
    let tokens: Vec<u32> = (0..40).map(|t| t * 7 % 32).collect();
    let all = job(1, tokens);
    let cases = [
        all.clone(),
        ScoreJob { ranges: vec![0..1, 5..9, 39..40], ..all.clone() },
        ScoreJob { k: 1, temperature: 0.5, ..all.clone() },
        ScoreJob { k: CLASSES, temperature: 20.0, ..all.clone() },
        job(u64::MAX, vec![31]),
    ];
    for case in &cases {
        let scored = stream.ask(case).await;
        assert_right(case, &scored);
        assert_eq!(scored.id, case.id);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_positions_means_all_and_no_codec_means_packed() {
    let server = Server::start(FakeScorer::new(CLASSES), Settings::DEFAULT).await;
    let mut stream = server.score().await;
    let wanted = ScoreJob { codec: Codec::Packed, ..job(3, vec![1, 2, 3, 4]) };
    let mut request = score_request(&wanted);
    request.positions.clear();
    request.codec = 0;
    request.vocab_size = 0;
    stream.send(request).await;
    let scored = assembler(&wanted).push(&stream.next().await).unwrap().unwrap();
    let exact = FakeScorer::scores(&wanted).signal;
    let exact = exact.top_k().unwrap();
    assert_eq!((&scored.signal.top_k().unwrap().ids, scored.signal.rows()), (&exact.ids, 4));
    assert_eq!(scored.signal.top_k().unwrap().log_z, exact.log_z);
    for (row, values) in exact.scaled.chunks(4).enumerate() {
        let bound = (values[0] - values[3]) / 131_070.0 + 1e-6;
        for (found, wanted) in scored.signal.top_k().unwrap().scaled[row * 4..].iter().zip(values) {
            assert!((found - wanted).abs() <= bound, "row {row}: {found} for {wanted}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn long_answers_are_cut_into_messages_of_the_agreed_size() {
    let settings = Settings::with(|limits| limits.max_reply_bytes = 4096);
    let server = Server::start(FakeScorer::new(CLASSES), settings).await;
    let mut stream = server.score().await;
    let job = ScoreJob { ranges: vec![2..90, 95..300], ..job(5, vec![9; 300]) };
    stream.send(score_request(&job)).await;
    let mut assembler = assembler(&job);
    let (mut messages, mut rows) = (0, 0);
    let scored = loop {
        let reply = stream.next().await;
        assert!(reply.encoded_len() <= 4096, "{} bytes", reply.encoded_len());
        (messages, rows) = (messages + 1, rows + reply.rows);
        assert_eq!(reply.last, rows == 293);
        if let Some(scored) = assembler.push(&reply).unwrap() {
            break scored;
        }
    };
    // 44 bytes a row; 293 rows do not fit into three messages.
    assert!(messages >= 4, "{messages} messages");
    assert_right(&job, &scored);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_requests_share_a_stream_and_many_streams_a_server() {
    let server = Server::start(FakeScorer::new(CLASSES), Settings::DEFAULT).await;
    let one_client = async |name: u64| {
        let stream = server.score().await;
        let jobs: Vec<ScoreJob> = (0..50)
            .map(|id| job(id, vec![(name * 50 + id) as u32 % 32; 1 + id as usize]))
            .collect();
        let (requests, mut replies) = (stream.requests, stream.replies);
        let send = async {
            for job in &jobs {
                requests.send(score_request(job)).await.unwrap();
            }
            drop(requests);
        };
        let receive = async {
            let mut assemblers: Vec<_> = jobs.iter().map(assembler).collect();
            let mut answered = 0;
            while let Some(reply) = replies.message().await.unwrap() {
                let id = reply.id as usize;
                if let Some(scored) = assemblers[id].push(&reply).unwrap() {
                    assert_right(&jobs[id], &scored);
                    answered += 1;
                }
            }
            assert_eq!(answered, jobs.len());
        };
        futures::join!(send, receive);
    };
    futures::join!(one_client(1), one_client(2), one_client(3));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_device_is_counted_without_a_job_to_end_its_waiting() {
    let server = Server::start(FakeScorer::new(CLASSES), Settings::DEFAULT).await;
    let counted = async {
        while server.metric("teacher_device_waiting_seconds_total").await == 0.0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), counted).await.expect("counted in time");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_done_is_counted() {
    let server = Server::start(FakeScorer::new(CLASSES), Settings::DEFAULT).await;
    let mut stream = server.score().await;
    let scored = ScoreJob { ranges: vec![1..2, 2..3], ..job(1, vec![4; 10]) };
    stream.ask(&scored).await;
    stream.send(score_request(&job(2, vec![]))).await;
    stream.next().await;
    let counts = [
        ("teacher_requests_total{method=\"Score\",code=\"OK\"}", 1.0),
        ("teacher_requests_total{method=\"Score\",code=\"INVALID_ARGUMENT\"}", 1.0),
        ("teacher_admitted_total", 1.0),
        ("teacher_tokens_total", 10.0),
        ("teacher_positions_total", 2.0),
        // Two rows of 4 raw entries, and 4 bytes each for the token that follows.
        ("teacher_payload_bytes_total", 2.0 * (4.0 * 8.0 + 8.0 + 4.0)),
        ("teacher_batches_total", 1.0),
        ("teacher_batch_tokens_count", 1.0),
        ("teacher_batch_tokens_sum", 10.0),
        ("teacher_compute_seconds_count", 1.0),
        ("teacher_token_compute_seconds_count", 1.0),
        ("teacher_first_reply_seconds_count", 1.0),
        ("teacher_queue_seconds_count", 1.0),
        ("teacher_streams", 1.0),
        ("teacher_queued_sequences", 0.0),
        ("teacher_serving", 1.0),
        ("teacher_panics_total", 0.0),
    ];
    for (name, value) in counts {
        assert_eq!(server.metric(name).await, value, "{name}");
    }
    // 10 tokens of the 16,384 that a batch may have.
    assert_eq!(server.metric("teacher_batch_fill_ratio_sum").await, 10.0 / 16_384.0);
    let compute = server.metric("teacher_compute_seconds_sum").await;
    let a_token = server.metric("teacher_token_compute_seconds_sum").await;
    assert!((a_token * 10.0 - compute).abs() < 1e-12, "{a_token} a token, {compute} in all");
    // The answer's arrays, and around them frames, heads and the refusal of the other.
    let sent = server.metric("teacher_sent_bytes_total{port=\"grpc\"}").await;
    assert!((88.0..1500.0).contains(&sent), "{sent} bytes sent");
    let page = server.get("/metrics").await.1;
    let build = concat!("teacher_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1");
    assert!(page.contains(build), "{page}");
    let sent = server.metric("teacher_sent_bytes_total{port=\"http\"}").await;
    assert!(sent >= page.len() as f64, "{sent} bytes sent, {} of them of one page", page.len());
    // The device's thread was waiting, then handing out.
    for name in ["teacher_device_waiting_seconds_total", "teacher_device_handover_seconds_total"] {
        assert!(server.metric(name).await > 0.0, "{name}");
    }
    assert!(server.get("/metrics").await.1.ends_with("# EOF\n"));
    assert_eq!(server.get("/nothing").await.0, "HTTP/1.1 404 Not Found");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bytes_of_a_reply_are_the_same_alone_and_in_a_crowd_but_for_its_times() {
    let bytes_of = async |crowd: u64| {
        let settings = Settings::with(|limits| limits.max_reply_bytes = 4096);
        let server = Server::start(FakeScorer::new(CLASSES), settings).await;
        let mut stream = server.score().await;
        let asked = ScoreJob { ranges: vec![2..90, 95..300], ..job(7, vec![9; 300]) };
        for id in 100..100 + crowd {
            stream.send(score_request(&job(id, vec![id as u32 % 32; 1 + id as usize % 50]))).await;
        }
        stream.send(score_request(&asked)).await;
        let mut bytes = Vec::new();
        loop {
            let reply = stream.next().await;
            if reply.id == 7 {
                let last = reply.last;
                bytes.extend(ScoreReply { queue_ns: 0, compute_ns: 0, ..reply }.encode_to_vec());
                if last {
                    return bytes;
                }
            }
        }
    };
    let alone = bytes_of(0).await;
    assert!(alone.len() > 293 * 44, "{} bytes", alone.len());
    for crowd in [1, 60] {
        assert!(bytes_of(crowd).await == alone, "other bytes beside {crowd} others");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn candidates_come_back_in_their_order() {
    let server = Server::start(FakeScorer::new(CLASSES), Settings::DEFAULT).await;
    let mut stream = server.score().await;
    let same = ScoreJob { entries: Entries::Named(vec![31, 0, 7, 9]), ..job(1, vec![1, 2, 3]) };
    let each: Vec<u32> = (0..12).map(|i| (i * 5) % 32).collect();
    let each = ScoreJob { entries: Entries::Named(each), ..job(2, vec![1, 2, 3]) };
    for job in [same, each] {
        assert_right(&job, &stream.ask(&job).await);
    }
    for (named, says) in [
        (vec![1, 1, 2, 3], "candidate 1 is named twice in row 0"),
        (vec![1, 2, 3, 32], "candidate 32"),
        (vec![1, 2, 3], "candidates has 12 bytes"),
    ] {
        let bad = ScoreJob { entries: Entries::Named(named), ..job(3, vec![1, 2, 3]) };
        stream.send(score_request(&bad)).await;
        let error = stream.next().await.error.unwrap();
        assert_eq!(error.code, Code::InvalidArgument as i32);
        assert!(error.message.contains(says), "{}", error.message);
    }
}
