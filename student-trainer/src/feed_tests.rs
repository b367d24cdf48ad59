//! The feed over loopback gRPC with a teacher that misbehaves.

use std::sync::atomic::Ordering::Relaxed;

use distill::codec::Codec;
use distill::fingerprint::Fingerprint;
use distill::handshake::Mismatch;

use super::*;
use crate::asking::Wanted;
use crate::teacher::Network;
use crate::testing::{CLASSES, FakeTeacher, Served, listing, logits, rows, tiny_source};
use client::Access;
use distill::signal::TopK;

const PATIENCE: Duration = Duration::from_secs(5);

struct Bench {
    _dir: tempfile::TempDir,
    network: Network,
    served: Served,
    teacher: Teacher,
    set: Arc<[Sequence]>,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let source = tiny_source(dir.path());
        let network = Network::start().unwrap();
        let served = FakeTeacher::of(&source).serve();
        let set = rows(12, 3);
        let facts = source.student_facts([&set, &[]], &listing(5));
        let teacher = Teacher::connect(
            &network,
            &served.url,
            &Access::default(),
            &facts,
            PATIENCE,
            &Stop::default(),
        )
        .unwrap();
        Self { _dir: dir, network, served, teacher, set }
    }

    fn ask() -> Ask {
        Ask {
            temperature: 2.0,
            wanted: Wanted::TopK { k: 5, codec: Codec::Raw },
            window: 4,
            give_up_after: Duration::from_secs(3),
        }
    }

    fn feed(&self, order: Vec<usize>) -> Feed {
        let order = order.into_iter();
        Feed::start(self.network.handle(), &self.teacher, Arc::clone(&self.set), order, Self::ask())
    }

    /// Gives the serving teacher another model or tokenizer; returns the fingerprint it had.
    fn exchange(&self, what: &str) -> Fingerprint {
        let mut facts = self.served.teacher.facts.lock().unwrap();
        let fingerprint = match what {
            "model" => &mut facts.model_fingerprint,
            _ => &mut facts.tokenizer_fingerprint,
        };
        std::mem::replace(fingerprint, Fingerprint([9; 32]))
    }

    /// Checks that every row of the order comes, in order, with the teacher's own numbers.
    fn all_come(&self, order: Vec<usize>) {
        let mut feed = self.feed(order.clone());
        for row in order {
            let scored = feed.next(&Stop::default()).unwrap().unwrap();
            assert_eq!(scored, self.wanted(row, scored.wire_bytes), "row {row}");
        }
        assert_eq!(feed.next(&Stop::default()).unwrap(), None);
    }

    /// What the teacher says of a row, from its logits.
    fn wanted(&self, row: usize, wire_bytes: u64) -> Scored {
        let (mut signal, mut next_logprob) = (TopK::new(5), Vec::new());
        let sequence = &self.set[row];
        for t in sequence.scored() {
            let y = logits(sequence.ids[t], CLASSES);
            signal.push_exact(&y, 2.0);
            let z = distill::signal::log_sum_exp(y.iter().copied());
            next_logprob.push((y[sequence.ids[t + 1] as usize] - z) as f32);
        }
        Scored { signal: signal.into(), next_logprob, wire_bytes }
    }
}

#[test]
fn answers_come_in_the_order_asked_even_when_the_teacher_reverses_them() {
    let bench = Bench::new();
    bench.served.teacher.mischief.reverse.store(4, Relaxed);
    bench.all_come(vec![5, 0, 11, 3, 3, 7, 1, 2, 10, 9]);
}

#[test]
fn every_codec_brings_the_answer_within_its_error_and_proves_the_alignment() {
    let bench = Bench::new();
    let mut bytes = Vec::new();
    for codec in Codec::ALL {
        let ask = Ask { wanted: Wanted::TopK { k: 5, codec }, ..Bench::ask() };
        let (network, stop) = (&bench.network, Stop::default());
        crate::proof::prove(network, &bench.teacher, &bench.set, ask, &stop).unwrap();
        let mut feed = Feed::start(
            network.handle(),
            &bench.teacher,
            Arc::clone(&bench.set),
            [3].into_iter(),
            ask,
        );
        let found = feed.next(&stop).unwrap().unwrap();
        let wanted = bench.wanted(3, found.wire_bytes);
        bytes.push(found.wire_bytes);
        assert_eq!(found.signal.top_k().unwrap().log_z, wanted.signal.top_k().unwrap().log_z);
        let rows = found
            .signal
            .top_k()
            .unwrap()
            .scaled
            .chunks(5)
            .zip(found.signal.top_k().unwrap().ids.chunks(5));
        for (row, (values, ids)) in rows.enumerate() {
            assert!(values.is_sorted_by(|a, b| a >= b), "{codec}: {values:?}");
            let entries = row * 5..row * 5 + 5;
            let (sent, names) = (
                &wanted.signal.top_k().unwrap().scaled[entries.clone()],
                &wanted.signal.top_k().unwrap().ids[entries],
            );
            let most = f64::from(sent[0] - sent[4]) * codec.error_share() + 1e-6;
            for (&sent, name) in sent.iter().zip(names) {
                let at = ids.iter().position(|id| id == name).expect("the same ids");
                let off = f64::from((values[at] - sent).abs());
                assert!(off <= most, "{codec}: {sent} became {}", values[at]);
            }
        }
    }
    assert!(bytes[3] < bytes[2] && bytes[2] < bytes[0] && bytes[0] < bytes[1], "{bytes:?}");
}

#[test]
fn streams_that_break_off_again_and_again_cost_no_row() {
    let bench = Bench::new();
    bench.served.teacher.mischief.hang_up_after.store(3, Relaxed);
    bench.all_come((0..12).collect());
    assert!(bench.served.teacher.mischief.streams.load(Relaxed) >= 4);
}

#[test]
fn a_stream_that_ends_with_a_pause_is_opened_again_after_it() {
    let bench = Bench::new();
    bench.served.teacher.mischief.hang_up_after.store(9, Relaxed);
    // Longer than the pauses the trainer takes of its own after one failure.
    let pause = Duration::from_millis(1500);
    bench.served.teacher.mischief.pause_ms.store(pause.as_millis() as usize, Relaxed);
    let begin = Instant::now();
    bench.all_come((0..12).collect());
    assert!(begin.elapsed() >= pause && bench.served.teacher.mischief.streams.load(Relaxed) == 2);
}

#[test]
fn a_row_refused_for_want_of_room_is_asked_again() {
    let bench = Bench::new();
    bench.served.teacher.mischief.refuse_first.store(3, Relaxed);
    bench.all_come((0..6).collect());
}

#[test]
fn a_teacher_that_comes_back_at_the_same_address_is_used_again() {
    let mut bench = Bench::new();
    let mut feed = bench.feed((0..12).collect());
    feed.next(&Stop::default()).unwrap().unwrap();
    bench.served.end();
    let address = bench.served.address;
    let begin = Instant::now();
    while std::net::TcpListener::bind(address).is_err() {
        assert!(begin.elapsed() < PATIENCE, "the port stays taken");
        std::thread::sleep(Duration::from_millis(20));
    }
    bench.served = bench.served.teacher.clone().serve_at(&address.to_string());
    for row in 1..12 {
        let scored = feed.next(&Stop::default()).unwrap().unwrap();
        assert_eq!(scored, bench.wanted(row, scored.wire_bytes));
    }
}

#[test]
fn no_more_rows_are_asked_for_than_there_are_places() {
    let bench = Bench::new();
    let mut feed = bench.feed((0..12).collect());
    let answered = || bench.served.teacher.mischief.answered.load(Relaxed);
    // The first answer shows that the stream runs; nothing else is taken.
    feed.next(&Stop::default()).unwrap().unwrap();
    let begin = Instant::now();
    while answered() < 5 {
        assert!(begin.elapsed() < PATIENCE, "only {} asked", answered());
        std::thread::sleep(Duration::from_millis(10));
    }
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(answered(), 5, "one taken, four places");
}

#[test]
fn the_wait_is_measured_and_a_stop_ends_it() {
    let bench = Bench::new();
    bench.served.teacher.mischief.delay_ms.store(300, Relaxed);
    let mut feed = bench.feed(vec![0]);
    feed.next(&Stop::default()).unwrap().unwrap();
    assert!(feed.take_waited() >= Duration::from_millis(290));
    assert_eq!(feed.take_waited(), Duration::ZERO);

    bench.served.teacher.mischief.delay_ms.store(60_000, Relaxed);
    let mut feed = bench.feed(vec![0]);
    let stop = Stop::default();
    let wish = stop.clone();
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        wish.request();
    });
    assert_eq!(feed.next(&stop).unwrap(), None);
}

#[test]
fn another_model_or_tokenizer_behind_the_address_stops_the_run_with_both_fingerprints() {
    for what in ["model", "tokenizer"] {
        let bench = Bench::new();
        let wanted = bench.exchange(what);
        let error = bench.feed(vec![0]).next(&Stop::default()).unwrap_err().to_string();
        for part in [what, &"09".repeat(32), &wanted.to_string()] {
            assert!(error.contains(part), "{error} lacks {part}");
        }
    }
}

#[test]
fn a_model_or_tokenizer_exchanged_under_an_open_stream_stops_the_run() {
    for what in ["model", "tokenizer"] {
        let bench = Bench::new();
        let mut feed = bench.feed((0..12).collect());
        feed.next(&Stop::default()).unwrap().unwrap();
        bench.exchange(what);
        let last = (1..12).find_map(|_| feed.next(&Stop::default()).err()).unwrap();
        let TeacherError::Reply { source, .. } = &last else { panic!("{last}") };
        match what {
            "model" => {
                assert!(matches!(source, Fault::Reply(ReplyError::Model { .. })), "{last}");
            }
            _ => assert!(matches!(source, Fault::Reply(ReplyError::Tokenizer { .. })), "{last}"),
        }
    }
}

#[test]
fn a_row_refused_for_good_is_named() {
    let bench = Bench::new();
    bench.served.teacher.facts.lock().unwrap().limits.max_sequence_tokens = 4;
    let error = bench.feed(vec![7]).next(&Stop::default()).unwrap_err();
    let refused = matches!(error, TeacherError::Lost { reason: GiveUp::Refused { .. }, .. });
    assert!(refused, "{error}");
    let text = error.to_string();
    let length = bench.set[7].len().to_string();
    for wanted in ["row 7", bench.served.url.as_str(), length.as_str(), "4"] {
        assert!(text.contains(wanted), "{text} lacks {wanted}");
    }
}

#[test]
fn shifted_targets_fail_the_proof() {
    let bench = Bench::new();
    let prove = || {
        crate::proof::prove(
            &bench.network,
            &bench.teacher,
            &bench.set,
            Bench::ask(),
            &Stop::default(),
        )
    };
    prove().unwrap();
    bench.served.teacher.mischief.shift.store(1, Relaxed);
    let error = prove().unwrap_err().to_string();
    assert!(error.contains("shifted") && error.contains("position"), "{error}");
}

#[test]
fn a_teacher_that_does_not_answer_is_named_with_the_attempts_and_the_time() {
    let dir = tempfile::tempdir().unwrap();
    let source = tiny_source(dir.path());
    let network = Network::start().unwrap();
    // A port nobody listens on: taken, then let go.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = format!("grpc://127.0.0.1:{port}");
    let facts = source.student_facts([&[], &[]], &listing(5));
    let limit = Duration::from_millis(700);
    let error =
        Teacher::connect(&network, &url, &Access::default(), &facts, limit, &Stop::default())
            .unwrap_err();
    let TeacherError::Unreachable { attempts, tried_for, .. } = &error else { panic!("{error}") };
    assert!(*attempts >= 2 && *tried_for >= limit);
    let text = error.to_string();
    assert!(text.contains(&url) && text.contains("refused"), "{text}");
}

/// A port where every connection is answered with these bytes, whatever it says.
fn stranger(says: &'static [u8]) -> std::net::SocketAddr {
    use std::io::{Read as _, Write as _};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let mut connection = connection.unwrap();
            // The other side may be gone already.
            let _ = connection.read(&mut [0; 1024]);
            let _ = connection.write_all(says);
        }
    });
    address
}

#[test]
fn a_port_where_something_else_listens_is_named_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let facts = tiny_source(dir.path()).student_facts([&[], &[]], &listing(5));
    let network = Network::start().unwrap();
    let (begin, limit) = (Instant::now(), Duration::from_secs(60));
    let health = b"HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\nserving\n";
    let cases: [(&[u8], &str); 3] = [
        (health, "the HTTP port of a teacher-server"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "a web server"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "SSH-2.0-OpenSSH_9.6"),
    ];
    for (says, wanted) in cases {
        let url = format!("http://{}", stranger(says));
        let error =
            Teacher::connect(&network, &url, &Access::default(), &facts, limit, &Stop::default())
                .unwrap_err();
        assert!(
            matches!(error, TeacherError::Client(client::Error::NotATeacher { .. })),
            "{error}"
        );
        let text = error.to_string();
        for part in [url.as_str(), wanted, "grpc=HOST:PORT"] {
            assert!(text.contains(part), "{text} lacks {part}");
        }
    }
    assert!(begin.elapsed() < PATIENCE * 3, "{:?}", begin.elapsed());
}

#[test]
fn a_teacher_of_another_tokenizer_is_refused_with_both_fingerprints() {
    let bench = Bench::new();
    let mut facts = bench.teacher.facts().clone();
    facts.tokenizer_fingerprint = Fingerprint([1; 32]);
    *bench.served.teacher.facts.lock().unwrap() = facts;
    let dir = tempfile::tempdir().unwrap();
    let student = tiny_source(dir.path()).student_facts([&[], &[]], &listing(5));
    let stop = Stop::default();
    let error = Teacher::connect(
        &bench.network,
        &bench.served.url,
        &Access::default(),
        &student,
        PATIENCE,
        &stop,
    );
    let error = error.unwrap_err();
    assert!(
        matches!(error, TeacherError::Mismatch { source: Mismatch::Tokenizer { .. }, .. }),
        "{error}"
    );
}
