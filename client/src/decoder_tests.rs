//! A blob on its way: cut off, damaged, fetched twice at a time, lost on the disk.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use distill::fingerprint::Fingerprint;
use futures::Stream;
use proto::convert::fetch_replies;
use proto::v1::teacher_server::{Teacher, TeacherServer};
use proto::v1::{
    Blob, FetchReply, GetDecoderReply, GetInfoReply, GetInfoRequest, ScoreReply, ScoreRequest,
    ScoreTextReply, ScoreTextRequest,
};
use tonic::{Request, Response, Status, Streaming};

use super::*;
use crate::Access;

/// Parts of so many bytes.
const PART: usize = 1000;

/// A teacher that has one blob, and sends so many parts of it before it hangs up.
#[derive(Clone, Default)]
struct Sender {
    blob: Arc<Vec<u8>>,
    parts: Arc<AtomicUsize>,
    /// A part that is changed on the way, after its checksum was taken or before.
    damage: Arc<Mutex<Option<(usize, bool)>>>,
    /// First bytes that were asked for.
    asked: Arc<Mutex<Vec<u64>>>,
}

type Sent<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Teacher for Sender {
    type ScoreStream = Sent<ScoreReply>;
    type FetchStream = Sent<FetchReply>;

    async fn get_info(&self, _: Request<GetInfoRequest>) -> Result<Response<GetInfoReply>, Status> {
        Err(Status::unimplemented("it only sends"))
    }

    async fn score(
        &self,
        _: Request<Streaming<ScoreRequest>>,
    ) -> Result<Response<Self::ScoreStream>, Status> {
        Err(Status::unimplemented("it only sends"))
    }

    async fn score_text(
        &self,
        _: Request<ScoreTextRequest>,
    ) -> Result<Response<ScoreTextReply>, Status> {
        Err(Status::unimplemented("it only sends"))
    }

    async fn get_decoder(
        &self,
        _: Request<GetDecoderRequest>,
    ) -> Result<Response<GetDecoderReply>, Status> {
        let fingerprint = Fingerprint::of(&self.blob).to_string();
        Ok(Response::new(GetDecoderReply {
            model_fingerprint: fingerprint.clone(),
            hidden_size: 4,
            output_matrix: Some(Blob { fingerprint, bytes: self.blob.len() as u64 }),
            ..GetDecoderReply::default()
        }))
    }

    async fn fetch(
        &self,
        request: Request<FetchRequest>,
    ) -> Result<Response<Self::FetchStream>, Status> {
        let offset = request.get_ref().offset;
        self.asked.lock().unwrap().push(offset);
        let damage = *self.damage.lock().unwrap();
        let parts: Vec<FetchReply> = fetch_replies(&self.blob[..], offset as usize, PART)
            .map(|mut part| {
                if let Some((at, sealed)) = damage.filter(|(at, _)| *at as u64 == part.offset) {
                    let mut data = part.data.to_vec();
                    data[0] ^= u8::try_from(1 + at % 7).unwrap();
                    if sealed {
                        part.checksum = distill::fingerprint::payload_checksum(&[&data]);
                    }
                    part.data = data.into();
                }
                part
            })
            .collect();
        let most = self.parts.load(Ordering::Relaxed);
        let whole = parts.len() <= most;
        let cut = (!whole).then(|| Err(Status::unavailable("going away")));
        let sent = parts.into_iter().take(most).map(Ok).chain(cut);
        Ok(Response::new(Box::pin(futures::stream::iter(sent.collect::<Vec<_>>()))))
    }
}

/// A sender of this blob at an address, with no bound on its parts.
async fn serve(blob: Vec<u8>) -> (Sender, Address, BlobFacts) {
    let facts = BlobFacts { fingerprint: Fingerprint::of(&blob), bytes: blob.len() as u64 };
    let sender = Sender { blob: Arc::new(blob), ..Sender::default() };
    sender.parts.store(usize::MAX, Ordering::Relaxed);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let service = TeacherServer::new(sender.clone());
    let server = tonic::transport::Server::builder().add_service(service);
    tokio::spawn(server.serve_with_incoming(incoming));
    let address = Address::parse(&format!("grpc://{address}"), &Access::default()).unwrap();
    (sender, address, facts)
}

fn blob() -> Vec<u8> {
    (0..10_000u32).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).collect()
}

#[tokio::test]
async fn a_transfer_that_is_cut_off_goes_on_where_it_broke() {
    let dir = tempfile::tempdir().unwrap();
    let (sender, address, facts) = serve(blob()).await;
    sender.parts.store(3, Ordering::Relaxed);
    let mut attempts = 0;
    let path = loop {
        attempts += 1;
        match address.fetch(facts, dir.path()).await {
            Ok(path) => break path,
            Err(failure) => assert!(matches!(failure, Failure::Passing(_)), "{failure}"),
        }
    };
    assert_eq!(std::fs::read(&path).unwrap(), blob());
    let asked = sender.asked.lock().unwrap().clone();
    assert!(attempts > 10 && asked.len() == attempts, "{attempts} {asked:?}");
    assert!(asked.windows(2).all(|pair| pair[1] == pair[0] + asked[1]), "{asked:?}");
    // What is there is not asked for again.
    assert_eq!(address.fetch(facts, dir.path()).await.unwrap(), path);
    assert_eq!(sender.asked.lock().unwrap().len(), attempts);
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
    assert_eq!(left.len(), 1, "{left:?}");
}

#[tokio::test]
async fn damage_on_the_way_and_on_the_disk_is_found_and_fetched_anew() {
    let dir = tempfile::tempdir().unwrap();
    let (sender, address, facts) = serve(blob()).await;
    let step = 968;
    // A part whose checksum tells: what came before it stays.
    *sender.damage.lock().unwrap() = Some((5 * step, false));
    let failure = address.fetch(facts, dir.path()).await.unwrap_err().to_string();
    assert!(failure.contains("checksum"), "{failure}");
    assert_eq!(std::fs::metadata(part_of(facts, dir.path())).unwrap().len(), 5 * step as u64);
    // One that only the whole tells: nothing of it can be trusted.
    *sender.damage.lock().unwrap() = Some((7 * step, true));
    let failure = address.fetch(facts, dir.path()).await.unwrap_err().to_string();
    assert!(failure.contains("damaged"), "{failure}");
    *sender.damage.lock().unwrap() = None;
    let path = address.fetch(facts, dir.path()).await.unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), blob());
    assert_eq!(*sender.asked.lock().unwrap(), [0, 5 * step as u64, 0]);
    // A file that lost its end since.
    std::fs::write(&path, &blob()[..500]).unwrap();
    assert_eq!(address.fetch(facts, dir.path()).await.unwrap(), path);
    assert_eq!(std::fs::read(&path).unwrap(), blob());
}

#[tokio::test]
async fn one_program_fetches_at_a_time_and_a_disk_that_refuses_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (_, address, facts) = serve(blob()).await;
    let other = File::create(part_of(facts, dir.path())).unwrap();
    other.lock().unwrap();
    let failure = address.fetch(facts, dir.path()).await.unwrap_err();
    assert!(matches!(&failure, Failure::Passing(_)), "{failure}");
    assert!(failure.to_string().contains("another program"), "{failure}");
    drop(other);
    assert!(address.fetch(facts, dir.path()).await.is_ok());
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let failure = address.fetch(facts, &file).await.unwrap_err();
    assert!(matches!(&failure, Failure::Final(Error::Keep { .. })), "{failure}");
}

#[tokio::test]
async fn a_teacher_that_names_no_code_is_told_from_one_that_was_asked_for_none() {
    let (_, address, facts) = serve(blob()).await;
    assert_eq!(address.decoder(false).await.unwrap().matrix, facts);
    let failure = address.decoder(true).await.unwrap_err();
    let said = failure.to_string();
    assert!(matches!(failure, Failure::Final(Error::Decoder { .. })), "{said}");
    assert!(said.contains(address.url()) && said.contains("no code"), "{said}");
}
