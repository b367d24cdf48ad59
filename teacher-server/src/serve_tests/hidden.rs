//! Hidden states and draws of a small model over the wire: what they are read with, in parts and whole,
//! and who asks for it too early or too far.

use std::sync::Arc;

use distill::coded::{Code, Rung};
use distill::fingerprint::{Fingerprint, payload_checksum};
use distill::hidden::{self, HiddenForm};
use distill::matrix::OutputMatrix;
use distill::signal::{Computed, Entries, Signal};
use model::coding::Decoder;
use proto::convert::{BlobAssembler, BlobFacts, ScoreJob, decoder_facts, score_request};
use proto::v1::{FetchRequest, GetDecoderRequest};
use tonic::Code as Status;

use super::harness::{Server, assembler_of};
use crate::config::AutoCalibration;
use crate::decoder::{Calibrating, Calibration, CalibrationSubject};
use crate::qwen3_scorer::tests::{CLASSES, HIDDEN, head, jobs, scorer};
use crate::scorer::{Facts, LoadError, Loaded, Scorer, TextCodec, all_positions};
use crate::settings::Settings;
use crate::testing::FakeText;

const MODEL: Fingerprint = Fingerprint([0xA5; 32]);

/// The small model, with its codes kept and made in this way.
fn loaded(how: Calibrating) -> Result<Loaded, LoadError> {
    let text: Arc<dyn TextCodec> = Arc::new(FakeText { vocab_size: 90 });
    let (model, tokenizer, width) = (MODEL, Fingerprint([0x70; 32]), HIDDEN);
    let of = CalibrationSubject { model, width, tokenizer, text: Arc::clone(&text) };
    let calibration = Calibration::new(of, how);
    let facts = crate::testing::facts(CLASSES as u32);
    let hidden_size = HIDDEN as u32;
    let facts = Facts { tokenizer_size: 90, max_positions: 64, hidden_size, ..facts };
    Ok(Loaded { scorer: Box::new(scorer().with_calibration(calibration)), text, facts })
}

async fn serve(dir: Option<std::path::PathBuf>) -> Server {
    serve_so(Calibrating { dir, ..Calibrating::default() }).await
}

async fn serve_so(how: Calibrating) -> Server {
    let mut server = Server::start_loading(move || loaded(how), Settings::DEFAULT).await;
    server.ready().await;
    server
}

/// All parts of a blob from `offset` on.
async fn fetch(server: &Server, blob: BlobFacts, offset: u64) -> Vec<u8> {
    let request = FetchRequest { fingerprint: blob.fingerprint.to_string(), offset };
    let mut parts = server.client().await.fetch(request).await.unwrap().into_inner();
    let mut assembler = BlobAssembler::new(blob.bytes, offset);
    let mut bytes = Vec::new();
    while let Some(part) = parts.message().await.unwrap() {
        bytes.extend_from_slice(assembler.push(&part).unwrap());
    }
    assert!(assembler.is_complete());
    bytes
}

/// What the server answers a job whose entries are these.
async fn ask(server: &Server, entries: Entries) -> Result<(ScoreJob, Signal), (i32, String)> {
    let job = ScoreJob { entries, k: 0, ..jobs().remove(2) };
    let mut stream = server.score().await;
    stream.send(score_request(&job)).await;
    let reply = stream.next().await;
    match reply.error {
        Some(error) => Err((error.code, error.message)),
        None => {
            let scored = assembler_of(&job, HIDDEN).push(&reply).unwrap().unwrap();
            Ok((job, scored.signal))
        }
    }
}

/// What the scorer says of a job itself.
fn exact(job: &ScoreJob) -> Computed {
    let scores = Scorer::score(&mut scorer(), &[job]).unwrap().remove(0).unwrap();
    scores.signal
}

#[tokio::test(flavor = "multi_thread")]
async fn hidden_states_and_the_matrix_are_the_models_own_to_the_bit() {
    let server = serve(None).await;
    let (job, signal) = ask(&server, Entries::Hidden(HiddenForm::F32)).await.unwrap();
    let (Signal::Hidden(rows), Computed::Hidden(states)) = (signal, exact(&job)) else { panic!() };
    let [(count, bytes)] = &rows.parts[..] else { panic!("one part") };
    assert_eq!(hidden::decode(bytes, *count, HIDDEN, HiddenForm::F32).unwrap(), states);

    let reply = server.client().await.get_decoder(GetDecoderRequest { code: false }).await.unwrap();
    let facts = decoder_facts(reply.get_ref()).unwrap();
    assert_eq!((facts.model, facts.hidden_size, facts.code), (MODEL, HIDDEN, None));
    let bytes = fetch(&server, facts.matrix, 0).await;
    assert_eq!(Fingerprint::of(&bytes), facts.matrix.fingerprint);
    let matrix = OutputMatrix::parse(&bytes).unwrap();
    assert_eq!((matrix.rows, matrix.width), (CLASSES, HIDDEN));
    let values = distill::codec::floats_from_bytes(matrix.values).unwrap();
    assert_eq!(values, head());
    // From the middle, and from the end.
    assert_eq!(fetch(&server, facts.matrix, 100).await, bytes[100..]);
    assert!(fetch(&server, facts.matrix, facts.matrix.bytes).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_code_is_made_once_and_coded_states_are_read_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(Some(dir.path().to_owned())).await;
    let coded = |code| Entries::Hidden(HiddenForm::Coded { code, rung: Rung(-64) });
    let (status, message) = ask(&server, coded(Fingerprint([1; 32]))).await.unwrap_err();
    assert_eq!(status, Status::FailedPrecondition as i32, "{message}");
    assert!(message.contains("not made yet") && message.contains("GetDecoder"), "{message}");

    let decoder = async |server: &Server| {
        let reply = server.client().await.get_decoder(GetDecoderRequest { code: true }).await;
        decoder_facts(reply.unwrap().get_ref()).unwrap()
    };
    let facts = decoder(&server).await;
    let code = facts.code.unwrap();
    let bytes = fetch(&server, code, 0).await;
    let read = Arc::new(Code::from_bytes(&bytes).unwrap());
    assert_eq!((read.fingerprint(), read.model()), (code.fingerprint, MODEL));
    assert_eq!(read.rates(), facts.rates);
    let (job, signal) = ask(&server, coded(code.fingerprint)).await.unwrap();
    let exact_job = ScoreJob { entries: Entries::Hidden(HiddenForm::F32), ..job };
    let (Signal::Hidden(rows), Computed::Hidden(states)) = (signal, exact(&exact_job)) else {
        panic!()
    };
    let decoder_of = Decoder::new(Arc::clone(&read), Rung(-64));
    let [(count, bytes)] = &rows.parts[..] else { panic!("one part") };
    let found = decoder_of.hidden_states(&read.decode(bytes, *count).unwrap());
    let off = |(a, b): (&f32, &f32)| f64::from((a - b) * (a - b));
    let apart: f64 = found.values.iter().zip(&states.values).map(off).sum();
    let all: f64 = states.values.iter().map(|x| f64::from(x * x)).sum();
    assert!(apart > 0.0 && apart < 0.01 * all, "{apart} of {all}");
    let (status, message) = ask(&server, coded(Fingerprint([1; 32]))).await.unwrap_err();
    assert_eq!(status, Status::FailedPrecondition as i32);
    assert!(message.contains(&code.fingerprint.to_string()), "{message}");

    // Another server of the same model and place has it before anybody asks.
    let next = serve(Some(dir.path().to_owned())).await;
    assert!(ask(&next, coded(code.fingerprint)).await.is_ok());
    assert_eq!(decoder(&next).await, facts);
}

/// A calibration of another version, model or tokenizer is no place for a new one: the client is told which
/// file it is, and the file stays.
#[tokio::test(flavor = "multi_thread")]
async fn a_calibration_that_cannot_be_used_is_named_and_not_written_over() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(format!("{MODEL}.calibration"));
    let ask_for = async |server: &Server, code| {
        server.client().await.get_decoder(GetDecoderRequest { code }).await
    };
    let maker = serve(Some(dir.path().to_owned())).await;
    ask_for(&maker, true).await.unwrap();
    let newer = [&b"LMBKCALI"[..], &9_u32.to_le_bytes(), &[0; 40]].concat();
    // The tokenizer stands behind magic and version, the checksum at the end.
    let mut other = std::fs::read(&path).unwrap();
    other[12..44].fill(0x71);
    let end = other.len() - 8;
    let checksum = payload_checksum(&[&other[..end]]);
    other[end..].copy_from_slice(&checksum.to_le_bytes());
    for (bytes, pieces) in [
        (newer, ["version is 9", "reads 2"]),
        (other, ["of the tokenizer 7171", "the tokenizer 7070"]),
    ] {
        std::fs::write(&path, &bytes).unwrap();
        let server = serve(Some(dir.path().to_owned())).await;
        let refused = ask_for(&server, true).await.unwrap_err();
        assert_eq!(refused.code(), Status::FailedPrecondition);
        for piece in pieces.into_iter().chain([path.to_str().unwrap(), "move it away"]) {
            assert!(refused.message().contains(piece), "no {piece:?} in {refused}");
        }
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
        // Hidden states that are in no code are to be had.
        assert!(ask_for(&server, false).await.is_ok());
        assert!(ask(&server, Entries::Hidden(HiddenForm::Bf16)).await.is_ok());
    }
}

/// One that an operator has made since the server began is there before any other: it is taken.
#[tokio::test(flavor = "multi_thread")]
async fn a_code_that_came_after_the_server_began_is_taken_and_not_set_aside() {
    let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let [here, there] = [0, 1].map(|at| dirs[at].path());
    let name = format!("{MODEL}.calibration");
    let code_of = async |server: &Server, first: &[u32]| {
        let mut stream = server.score().await;
        let ranges = all_positions(first.len());
        let job = ScoreJob { tokens: first.to_vec(), ranges, ..jobs().remove(2) };
        stream.send(score_request(&job)).await;
        stream.next().await;
        let reply = server.client().await.get_decoder(GetDecoderRequest { code: true }).await;
        decoder_facts(reply.unwrap().get_ref()).unwrap().code.unwrap()
    };
    let other = serve(Some(there.to_owned())).await;
    let operators = code_of(&other, &[1, 2, 3]).await;
    let server = serve(Some(here.to_owned())).await;
    std::fs::copy(there.join(&name), here.join(&name)).unwrap();
    assert_eq!(code_of(&server, &[3, 2, 1, 0]).await, operators);
    assert_eq!(std::fs::read_dir(here).unwrap().count(), 1);
}

/// Where clients are not to be trusted they have no part in the code, or there is none until the operator
/// makes one.
#[tokio::test(flavor = "multi_thread")]
async fn a_code_is_made_of_clients_tokens_only_where_that_is_allowed() {
    let code_of = async |auto, first: &[u32]| {
        let server = serve_so(Calibrating { dir: None, auto }).await;
        let mut stream = server.score().await;
        let job = ScoreJob { tokens: first.to_vec(), ranges: all_positions(4), ..jobs().remove(2) };
        stream.send(score_request(&job)).await;
        stream.next().await;
        let reply = server.client().await.get_decoder(GetDecoderRequest { code: true }).await;
        reply.map(|reply| decoder_facts(reply.get_ref()).unwrap().code)
    };
    let (one, other) = ([1, 2, 3, 4], [4, 3, 2, 1]);
    let traffic = AutoCalibration::Traffic;
    assert_ne!(code_of(traffic, &one).await.unwrap(), code_of(traffic, &other).await.unwrap());
    let built_in = AutoCalibration::BuiltIn;
    assert_eq!(code_of(built_in, &one).await.unwrap(), code_of(built_in, &other).await.unwrap());
    let refused = code_of(AutoCalibration::Off, &one).await.unwrap_err();
    assert_eq!(refused.code(), Status::FailedPrecondition);
    assert!(refused.message().contains("teacher-server calibrate"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn blobs_are_fetched_by_their_names_within_their_ends() {
    let server = serve(None).await;
    let fetch = async |fingerprint: String, offset| {
        let request = FetchRequest { fingerprint, offset };
        server.client().await.fetch(request).await.map(|_| ()).unwrap_err()
    };
    let unknown = fetch("07".repeat(32), 0).await;
    assert_eq!(unknown.code(), Status::NotFound);
    assert!(unknown.message().contains("GetDecoder"), "{unknown}");
    assert_eq!(fetch("nonsense\n".to_owned(), 0).await.code(), Status::NotFound);
    let reply = server.client().await.get_decoder(GetDecoderRequest { code: false }).await.unwrap();
    let facts = decoder_facts(reply.get_ref()).unwrap();
    let behind = fetch(facts.matrix.fingerprint.to_string(), facts.matrix.bytes + 1).await;
    assert_eq!(behind.code(), Status::OutOfRange);
    assert!(behind.message().contains(&facts.matrix.bytes.to_string()), "{behind}");
}

/// A transfer goes on at a server that has started again, without asking it what there is.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_starts_again_has_the_blobs_it_named() {
    let dir = tempfile::tempdir().unwrap();
    let first = serve(Some(dir.path().to_owned())).await;
    let reply = first.client().await.get_decoder(GetDecoderRequest { code: true }).await.unwrap();
    let facts = decoder_facts(reply.get_ref()).unwrap();
    let blobs = [facts.matrix, facts.code.unwrap()];
    for blob in blobs {
        let whole = fetch(&first, blob, 0).await;
        let again = serve(Some(dir.path().to_owned())).await;
        assert_eq!(fetch(&again, blob, 5).await, whole[5..]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_teacher_without_hidden_states_says_so() {
    let fake = crate::testing::FakeScorer::new(CLASSES);
    let server = Server::start(fake, Settings::DEFAULT).await;
    let refused = server.client().await.get_decoder(GetDecoderRequest { code: true }).await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.code(), Status::Unimplemented);
    assert!(refused.message().contains("no hidden states"), "{refused}");
    let request = FetchRequest { fingerprint: "07".repeat(32), offset: 0 };
    let refused = server.client().await.fetch(request).await.unwrap_err();
    assert_eq!(refused.code(), Status::Unimplemented, "{refused}");
    let (status, message) = ask(&server, Entries::Hidden(HiddenForm::F32)).await.unwrap_err();
    assert_eq!(status, Status::InvalidArgument as i32);
    assert!(message.contains("full is not offered"), "{message}");
}

/// Draws depend on the request alone: who asks again, among whatever others, has the same ones.
#[tokio::test(flavor = "multi_thread")]
async fn a_retry_has_the_same_draws() {
    let entries = |seed| Entries::Drawn { draws: 16, seed };
    let (first, second) = (serve(None).await, serve(None).await);
    let (job, drawn) = ask(&first, entries(5)).await.unwrap();
    let (_, again) = ask(&second, entries(5)).await.unwrap();
    let (_, other) = ask(&second, entries(6)).await.unwrap();
    assert!(drawn == again && drawn != other);
    let (Signal::Drawn(drawn), Computed::Drawn(exact)) = (drawn, exact(&job)) else { panic!() };
    assert_eq!(drawn, exact);
}
