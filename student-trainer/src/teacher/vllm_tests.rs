//! A vLLM server as teacher, against a stand-in that speaks its HTTP.

use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use distill::codec::Codec;
use distill::signal::log_sum_exp;
use serde_json::{Value, json};

use super::*;
use crate::asking::{Ask, Wanted};
use crate::config::{DivergenceKind, TailKind};
use crate::feed::Feed;
use crate::joining::tail;
use crate::testing::{CLASSES, FakeTeacher, joined, listing, logits, row_set, rows, tiny_source};

/// How the stand-in behaves; may be changed while it serves.
#[derive(Debug)]
struct Manners {
    model: Mutex<&'static str>,
    /// What it makes of every text; none: it knows no such call.
    tokens: Mutex<Option<Vec<u32>>>,
    /// Scores answered with this status before the first good one.
    refusals: AtomicUsize,
    status: AtomicUsize,
    max_logprobs: AtomicUsize,
    scored: AtomicUsize,
    token: Option<&'static str>,
}

pub(super) struct StandIn {
    pub(super) address: SocketAddr,
    manners: Arc<Manners>,
}

impl StandIn {
    fn serve(token: Option<&'static str>) -> Self {
        Self::serve_over(token, |stream| stream)
    }

    /// The same, over what is made of each connection.
    pub(super) fn serve_over<S: Read + Write>(
        token: Option<&'static str>,
        over: impl Fn(TcpStream) -> S + Clone + Send + 'static,
    ) -> Self {
        let manners = Arc::new(Manners {
            model: Mutex::new("tiny"),
            tokens: Mutex::new(None),
            refusals: AtomicUsize::new(0),
            status: AtomicUsize::new(503),
            max_logprobs: AtomicUsize::new(64),
            scored: AtomicUsize::new(0),
            token,
        });
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, shared) = (listener.local_addr().unwrap(), Arc::clone(&manners));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (manners, over) = (Arc::clone(&shared), over.clone());
                // A client that goes away in the middle is none of its faults.
                std::thread::spawn(move || manners.answer(over(stream.unwrap())));
            }
        });
        Self { address, manners }
    }

    fn url(&self) -> String {
        format!("vllm+http://{}", self.address)
    }
}

impl Manners {
    /// One call, then the connection is closed.
    fn answer(&self, stream: impl Read + Write) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream);
        let (mut line, mut length, mut shown) = (String::new(), 0, None);
        reader.read_line(&mut line)?;
        loop {
            let mut header = String::new();
            reader.read_line(&mut header)?;
            let header = header.trim();
            match header.split_once(": ") {
                Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                    length = value.parse().unwrap();
                }
                Some((name, value)) if name.eq_ignore_ascii_case("authorization") => {
                    shown = Some(value.to_owned());
                }
                Some(_) => {}
                None => break,
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let path = line.split(' ').nth(1).unwrap_or_default();
        let (status, answer) = match self.token.is_none_or(|t| shown.as_deref() == Some(t)) {
            true => self.reply(path, &serde_json::from_slice(&body).unwrap_or_default()),
            false => (401, json!({"error": "Unauthorized"})),
        };
        let answer = answer.to_string();
        write!(
            reader.get_mut(),
            "HTTP/1.1 {status} x\r\nretry-after: 1\r\nserver: uvicorn\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{answer}",
            answer.len()
        )
    }

    fn reply(&self, path: &str, body: &Value) -> (usize, Value) {
        let refused = |status, text: &str| (status, json!({"error": {"message": text}}));
        match path {
            "/v1/models" => {
                let id = *self.model.lock().unwrap();
                let model = json!({"id": id, "root": "r", "parent": null, "max_model_len": 32});
                let over = json!({"id": "lora", "root": "l", "parent": id});
                (200, json!({"object": "list", "data": [over, model]}))
            }
            "/tokenize" => match &*self.tokens.lock().unwrap() {
                Some(tokens) => (200, json!({"count": tokens.len(), "tokens": tokens})),
                None => (404, json!({"detail": "Not Found"})),
            },
            "/v1/completions" => {
                let fewer = |left: usize| left.checked_sub(1);
                if self.refusals.fetch_update(Relaxed, Relaxed, fewer).is_ok() {
                    return refused(self.status.load(Relaxed), "busy");
                }
                let k = body["prompt_logprobs"].as_u64().unwrap() as usize;
                if k > self.max_logprobs.load(Relaxed) {
                    return refused(400, "Requested prompt logprobs greater than max allowed: 20");
                }
                assert_eq!(body["model"], *self.model.lock().unwrap());
                assert_eq!((&body["max_tokens"], &body["temperature"]), (&json!(1), &json!(1.0)));
                self.scored.fetch_add(1, Relaxed);
                (200, completion(body, k))
            }
            _ => (404, json!({"detail": "Not Found"})),
        }
    }
}

/// The log-probabilities at T = 1 of the fake teacher's logits, in vLLM's form.
fn completion(body: &Value, k: usize) -> Value {
    let ids: Vec<u32> = serde_json::from_value(body["prompt"].clone()).unwrap();
    let row = |pair: &[u32]| {
        let y = logits(pair[0], CLASSES);
        let z = log_sum_exp(y.iter().copied());
        let mut order: Vec<usize> = (0..CLASSES).collect();
        order.sort_by(|&a, &b| y[b].total_cmp(&y[a]).then(a.cmp(&b)));
        let wanted = std::iter::once(pair[1] as usize).chain(order[..k].iter().copied());
        let entry = |id: usize| (id.to_string(), json!({"logprob": y[id] - z, "rank": 1}));
        Value::Object(wanted.map(entry).collect())
    };
    let rows = std::iter::once(Value::Null).chain(ids.windows(2).map(row));
    json!({"choices": [{"index": 0, "text": "x", "prompt_logprobs": rows.collect::<Vec<_>>()}]})
}

fn ask(temperature: f32, top_k: usize) -> Ask {
    let give_up_after = Duration::from_secs(3);
    let wanted = Wanted::TopK { k: top_k, codec: Codec::Raw };
    Ask { wanted, temperature, window: 4, give_up_after }
}

/// Joins a teacher as a run does; what was noted with it.
fn join(
    url: &str,
    access: &Access,
    ask: Ask,
) -> Result<(Network, Teacher, RowSetOf, String), String> {
    let dir = tempfile::tempdir().unwrap();
    let source = tiny_source(dir.path());
    let set = row_set("train.jsonl", rows(9, 4));
    let facts = source.student_facts([&set.sequences, &[]], &listing(5));
    let (network, urls) = (Network::start().unwrap(), [url.to_owned()]);
    let mut noted = String::new();
    let note = &mut |text: &str| noted.push_str(text);
    let who = (&source.tokenizer, &facts);
    let joined = joined((&urls, access), who, ask.temperature, &set, note);
    let joined = joined.map_err(|error| error.to_string())?.unwrap();
    assert_eq!(
        tail(TailKind::Bucket, DivergenceKind::ForwardKl, Some(&joined), note).unwrap()
            == TailKind::Bucket,
        joined.0.knows_mass(f64::from(ask.temperature))
    );
    Ok((network, joined.0, set.sequences, noted))
}

type RowSetOf = Arc<[distill::batch::Sequence]>;

/// Every row's answer, in order.
fn all(network: &Network, teacher: &Teacher, set: &RowSetOf, ask: Ask) -> Vec<crate::feed::Scored> {
    let mut feed = Feed::start(network.handle(), teacher, Arc::clone(set), 0..set.len(), ask);
    let next = || feed.next(&Stop::default()).unwrap();
    std::iter::from_fn(next).collect()
}

#[test]
fn at_temperature_1_it_says_what_our_own_contract_says() {
    let dir = tempfile::tempdir().unwrap();
    let ours = FakeTeacher::of(&tiny_source(dir.path())).serve();
    let theirs = StandIn::serve(None);
    let ask = ask(1.0, 5);
    let (n, a, set, _) = join(&ours.url, &Access::default(), ask).unwrap();
    let (m, b, _, noted) = join(&theirs.url(), &Access::default(), ask).unwrap();
    assert!(noted.contains("/tokenize"), "{noted}");
    let (ours, theirs) = (all(&n, &a, &set, ask), all(&m, &b, &set, ask));
    assert_eq!((ours.len(), theirs.len()), (9, 9));
    for (a, b) in ours.iter().zip(&theirs) {
        assert_eq!(a.signal.top_k().unwrap().ids, b.signal.top_k().unwrap().ids);
        assert!(b.wire_bytes > a.wire_bytes, "JSON is larger");
        for row in 0..a.signal.rows() {
            let ((p, rest), (q, tail)) = (
                a.signal.top_k().unwrap().probabilities(row),
                b.signal.top_k().unwrap().probabilities(row),
            );
            for (p, q) in p.iter().zip(&q).chain([(&rest, &tail)]) {
                assert!((p - q).abs() < 1e-6, "{p} {q}");
            }
        }
        for (p, q) in a.next_logprob.iter().zip(&b.next_logprob) {
            assert!((p - q).abs() < 1e-5, "{p} {q}");
        }
    }
}

#[test]
fn at_another_temperature_it_is_said_plainly_what_is_missing() {
    let theirs = StandIn::serve(None);
    let (_, teacher, _, noted) = join(&theirs.url(), &Access::default(), ask(5.0, 5)).unwrap();
    assert!(!teacher.knows_mass(5.0) && teacher.knows_mass(1.0));
    for piece in [theirs.url().as_str(), "--temperature 5", "--tail renormalise", "teacher-server"]
    {
        assert!(noted.contains(piece), "no {piece:?} in {noted}");
    }
    let (_, _, _, noted) = join(&theirs.url(), &Access::default(), ask(1.0, 5)).unwrap();
    assert!(!noted.contains("renormalise"), "{noted}");
    let told = Some((teacher, ask(5.0, 5)));
    let with = |kind| tail(TailKind::Bucket, kind, told.as_ref(), &mut |_| ());
    let refused = with(DivergenceKind::ReverseKl).unwrap_err().to_string();
    for piece in
        ["--divergence reverse-kl", "--temperature 5", theirs.url().as_str(), "teacher-server"]
    {
        assert!(refused.contains(piece), "no {piece:?} in {refused}");
    }
    assert_eq!(with(DivergenceKind::ForwardKl).unwrap(), TailKind::Renormalise);
}

#[test]
fn another_tokenizer_is_refused_and_the_same_is_no_matter() {
    let theirs = StandIn::serve(None);
    *theirs.manners.tokens.lock().unwrap() = Some(vec![1, 2, 3]);
    let error = join(&theirs.url(), &Access::default(), ask(1.0, 5)).unwrap_err();
    assert!(
        error.contains("different tokenizers: token 0") && error.contains("is 1 there"),
        "{error}"
    );
    assert_eq!(theirs.manners.scored.load(Relaxed), 0);
    let dir = tempfile::tempdir().unwrap();
    let same = tiny_source(dir.path()).tokenizer.encode(super::tokenizer::PROBE).unwrap();
    *theirs.manners.tokens.lock().unwrap() = Some(same);
    let (_, _, _, noted) = join(&theirs.url(), &Access::default(), ask(1.0, 5)).unwrap();
    assert_eq!(noted, "");
}

#[test]
fn a_server_that_is_busy_is_asked_again_and_one_that_refuses_is_named() {
    let theirs = StandIn::serve(None);
    let (network, teacher, set, _) = join(&theirs.url(), &Access::default(), ask(1.0, 5)).unwrap();
    for status in [429, 500, 503] {
        theirs.manners.status.store(status, Relaxed);
        theirs.manners.refusals.store(2, Relaxed);
        let before = theirs.manners.scored.load(Relaxed);
        assert_eq!(all(&network, &teacher, &set, ask(1.0, 5)).len(), 9);
        // Those that were under way beside a refused one were not asked again.
        assert_eq!(theirs.manners.scored.load(Relaxed) - before, 9, "{status}");
    }
    // The pause it asks for is kept.
    theirs.manners.refusals.store(1, Relaxed);
    let begin = Instant::now();
    assert_eq!(all(&network, &teacher, &set, ask(1.0, 5)).len(), 9);
    assert!(begin.elapsed() >= Duration::from_secs(1), "{:?}", begin.elapsed());
    theirs.manners.max_logprobs.store(3, Relaxed);
    let mut feed = Feed::start(network.handle(), &teacher, Arc::clone(&set), 0..1, ask(1.0, 5));
    let error = feed.next(&Stop::default()).unwrap_err().to_string();
    for piece in [theirs.url().as_str(), "row 0", "400", "max allowed: 20", "--max-logprobs"] {
        assert!(error.contains(piece), "no {piece:?} in {error}");
    }
}

#[test]
fn another_model_behind_the_address_stops_the_run() {
    let theirs = StandIn::serve(None);
    let (network, teacher, set, _) = join(&theirs.url(), &Access::default(), ask(1.0, 5)).unwrap();
    *theirs.manners.model.lock().unwrap() = "other";
    let mut feed = Feed::start(network.handle(), &teacher, set, 0..9, ask(1.0, 5));
    let error = feed.next(&Stop::default()).unwrap_err().to_string();
    assert!(error.contains("now serves another model"), "{error}");
}

#[test]
fn rows_beyond_its_context_are_refused_before_anything_is_asked() {
    let theirs = StandIn::serve(None);
    let dir = tempfile::tempdir().unwrap();
    let mut facts = tiny_source(dir.path()).student_facts([&[], &[]], &listing(5));
    let network = Network::start().unwrap();
    let mut connect = |length| {
        facts.max_length = length;
        let (url, stop) = (theirs.url(), Stop::default());
        Teacher::connect(&network, &url, &Access::default(), &facts, Duration::ZERO, &stop)
    };
    connect(31).unwrap();
    let error = connect(32).unwrap_err().to_string();
    assert!(error.contains("32 tokens, the teacher takes 31"), "{error}");
}

#[test]
fn addresses_that_are_mistyped_are_refused_with_how_they_are_written() {
    let theirs = StandIn::serve(None);
    let port = theirs.address.port();
    let cases = [
        (format!("vllm://127.0.0.1:{port}"), "known are vllm+http://"),
        (format!("vllm+http://127.0.0.1:{port}/v1/models"), "is not there: 404"),
        (format!("vllm+http://me:s3cret@127.0.0.1:{port}"), "vllm+http://***@127.0.0.1"),
        (format!("vllm+https://127.0.0.1:{port}"), "give ca"),
    ];
    for (url, wanted) in cases {
        let error = join(&url, &Access::default(), ask(1.0, 5)).unwrap_err();
        assert!(error.contains(wanted) && !error.contains("s3cret"), "{error}: {wanted}");
    }
    for good in ["VLLM+HTTP://127.0.0.1", "vllm+http://127.0.0.1"] {
        join(&format!("{good}:{port}/v1/"), &Access::default(), ask(1.0, 5)).unwrap();
    }
    for name in ["red \u{1b}[31m", "two\nlines"] {
        *theirs.manners.model.lock().unwrap() = name;
        let error = join(&theirs.url(), &Access::default(), ask(1.0, 5)).unwrap_err();
        assert!(error.contains("a name that nobody gives") && !error.contains('\u{1b}'), "{error}");
    }
}

#[test]
fn the_token_is_shown_and_a_wrong_address_is_named() {
    let guarded = StandIn::serve(Some("Bearer s3cret"));
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "s3cret\n").unwrap();
    let papers = client::Papers { token_file: Some(file.path().into()), ..Default::default() };
    let access = Access::read(papers).unwrap();
    join(&guarded.url(), &access, ask(1.0, 5)).unwrap();
    let error = join(&guarded.url(), &Access::default(), ask(1.0, 5)).unwrap_err();
    assert!(error.contains("Unauthenticated") && error.contains("401"), "{error}");
    // Our own address, given for vLLM's, and the other way round.
    let dir = tempfile::tempdir().unwrap();
    let ours = FakeTeacher::of(&tiny_source(dir.path())).serve();
    let swapped = ours.url.replace("grpc://", "vllm+http://");
    let error = join(&swapped, &Access::default(), ask(1.0, 5)).unwrap_err();
    assert!(error.contains(&swapped) && error.contains("write grpc://"), "{error}");
    let swapped = guarded.url().replace("vllm+http://", "grpc://");
    let error = join(&swapped, &Access::default(), ask(1.0, 5)).unwrap_err();
    assert!(error.contains("write vllm+http://"), "{error}");
}
