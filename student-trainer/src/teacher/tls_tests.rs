//! Encrypted connections, against a teacher in this process with certificates made here.

use std::path::{Path, PathBuf};

use client::Papers;
use rcgen::{BasicConstraints, Certificate, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tonic::transport::{Identity, ServerTlsConfig};

use super::vllm_tests::StandIn;
use super::*;
use crate::testing::{FakeTeacher, Served, joined, listing, tiny_source};

/// What no error may take: it would have been tried again until then.
const LIMIT: Duration = Duration::from_secs(60);
const TOKEN: &str = "Bearer s3cret";

/// No papers, named as the options.
fn blank() -> Papers {
    Papers { prefix: "--teacher-", ..Papers::default() }
}

/// An authority with a folder for its files.
struct Authority {
    dir: tempfile::TempDir,
    certificate: Certificate,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key, in PEM.
struct Signed(String, String);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let dir = tempfile::tempdir().unwrap();
        Self { dir, certificate, issuer: Issuer::new(params, key) }
    }

    fn sign(&self, name: &str, until: i32) -> Signed {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(2000, 1, 1);
        params.not_after = rcgen::date_time_ymd(until, 1, 1);
        let key = KeyPair::generate().unwrap();
        Signed(params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    fn file(&self, name: &str, text: &str) -> Option<PathBuf> {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        Some(path)
    }

    /// Trust in this authority.
    fn papers(&self) -> Papers {
        let ca = self.file("ca.pem", &self.certificate.pem());
        Papers { ca, ..blank() }
    }
}

fn tls(signed: &Signed) -> ServerTlsConfig {
    ServerTlsConfig::new().identity(Identity::from_pem(&signed.0, &signed.1))
}

fn serve(dir: &Path, tls: ServerTlsConfig, token: Option<&'static str>) -> Served {
    FakeTeacher::of(&tiny_source(dir)).serve_guarded("127.0.0.1:0", Some(tls), token)
}

fn connect(url: &str, papers: Papers) -> Result<Teacher, String> {
    let dir = tempfile::tempdir().unwrap();
    let facts = tiny_source(dir.path()).student_facts([&[], &[]], &listing(5));
    let access = Access::read(papers).unwrap();
    let network = Network::start().unwrap();
    let begin = Instant::now();
    let reached = Teacher::connect(&network, url, &access, &facts, LIMIT, &Stop::default());
    assert!(begin.elapsed() < LIMIT / 4, "{:?}", begin.elapsed());

    reached.map_err(|error| error.to_string())
}

/// The error of a connection, which must hold all of these.
fn refused(url: &str, papers: Papers, pieces: &[&str]) {
    let error = connect(url, papers).unwrap_err();
    for piece in [url].iter().chain(pieces) {
        assert!(error.contains(piece), "no {piece:?} in: {error}");
    }
    assert!(!error.contains("s3cret"), "{error}");
}

#[test]
fn a_trusted_teacher_is_reached_and_another_is_refused_at_once_with_the_reason() {
    let (dir, ours, theirs) = (tempfile::tempdir().unwrap(), Authority::new(), Authority::new());
    let served = serve(dir.path(), tls(&ours.sign("127.0.0.1", 2999)), None);
    connect(&served.url, ours.papers()).unwrap();
    connect(&served.url.replace("grpcs", "https"), ours.papers()).unwrap();
    refused(&served.url, theirs.papers(), &["invalid peer certificate", "--teacher-ca must hold"]);
    refused(&served.url, blank(), &["give --teacher-ca"]);
    let named = Papers { name: Some("other".to_owned()), ..ours.papers() };
    refused(&served.url, named, &["not valid for name \"other\"", "--teacher-name"]);
    let plain = format!("grpc://{}", served.address);
    refused(&plain, blank(), &["TLS", "write grpcs://"]);
}

#[test]
fn a_certificate_of_another_name_or_time_is_refused_at_once_with_the_reason() {
    let (dir, ours) = (tempfile::tempdir().unwrap(), Authority::new());
    let served = serve(dir.path(), tls(&ours.sign("teacher.example", 2999)), None);
    refused(&served.url, ours.papers(), &["teacher.example", "with --teacher-name"]);
    let named = Papers { name: Some("teacher.example".to_owned()), ..ours.papers() };
    connect(&served.url, named).unwrap();
    let old = serve(dir.path(), tls(&ours.sign("127.0.0.1", 2020)), None);
    refused(&old.url, ours.papers(), &["certificate expired", "valid now"]);
}

#[test]
fn a_self_signed_certificate_is_trusted_where_it_is_named() {
    let (dir, ours) = (tempfile::tempdir().unwrap(), Authority::new());
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let (pem, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    let served = serve(dir.path(), tls(&Signed(pem.clone(), key)), None);
    let papers = Papers { ca: ours.file("own.pem", &pem), ..blank() };
    connect(&served.url, papers).unwrap();
}

#[test]
fn a_port_without_encryption_is_named_at_once() {
    let (dir, ours) = (tempfile::tempdir().unwrap(), Authority::new());
    let served = FakeTeacher::of(&tiny_source(dir.path())).serve();
    let url = served.url.replace("grpc://", "grpcs://");
    refused(&url, ours.papers(), &["Then write grpc://"]);
}

#[test]
fn a_teacher_that_wants_a_client_certificate_gets_it() {
    let (dir, ours) = (tempfile::tempdir().unwrap(), Authority::new());
    let wants = tls(&ours.sign("127.0.0.1", 2999))
        .client_ca_root(tonic::transport::Certificate::from_pem(ours.certificate.pem()));
    let served = serve(dir.path(), wants, None);
    let of = |by: &Authority| {
        let Signed(chain, secret) = by.sign("student", 2999);
        let (cert, key) = (ours.file("c.pem", &chain), ours.file("k.pem", &secret));
        Papers { cert, key, ..ours.papers() }
    };
    connect(&served.url, of(&ours)).unwrap();
    refused(&served.url, ours.papers(), &["CertificateRequired", "give --teacher-cert"]);
    refused(&served.url, of(&Authority::new()), &["a client certificate it trusts"]);
    let mixed = Papers { key: ours.file("x.pem", &ours.sign("x", 2999).1), ..of(&ours) };
    refused(&served.url, mixed, &["--teacher-cert and --teacher-key cannot be used"]);
}

#[test]
fn a_vllm_server_is_trusted_or_refused_in_the_same_way() {
    let ours = Authority::new();
    let Signed(chain, key) = ours.sign("127.0.0.1", 2999);
    let chain = vec![CertificateDer::from_pem_slice(chain.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let provider = rustls::crypto::ring::default_provider().into();
    let config = rustls::ServerConfig::builder_with_provider(provider);
    let config = config.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    let config = std::sync::Arc::new(config.with_single_cert(chain, key).unwrap());
    let served = StandIn::serve_over(Some(TOKEN), move |stream| {
        let connection = rustls::ServerConnection::new(std::sync::Arc::clone(&config)).unwrap();
        rustls::StreamOwned::new(connection, stream)
    });
    let url = format!("vllm+https://{}", served.address);
    let with = |papers| Papers { token_file: ours.file("t", "s3cret"), ..papers };
    connect(&url, with(ours.papers())).unwrap();
    refused(&url, ours.papers(), &["Unauthenticated", "401"]);
    let theirs = Authority::new();
    refused(&url, with(theirs.papers()), &["invalid peer certificate", "--teacher-ca must hold"]);
    refused(&url.replace("https", "http"), blank(), &["TLS", "write vllm+https://"]);
}

#[test]
fn the_token_goes_with_every_call() {
    let (dir, ours) = (tempfile::tempdir().unwrap(), Authority::new());
    let served = serve(dir.path(), tls(&ours.sign("127.0.0.1", 2999)), Some(TOKEN));
    let with = |token: &str| Papers { token_file: ours.file("t", token), ..ours.papers() };
    for bad in [ours.papers(), with("s3cret2")] {
        refused(&served.url, bad, &["refused GetInfo: Unauthenticated", "no token of mine"]);
    }
    // The alignment proof asks for scores.
    let source = tiny_source(dir.path());
    let rows = crate::testing::row_set("train.jsonl", crate::testing::rows(3, 1));
    let facts = source.student_facts([&rows.sequences, &[]], &listing(5));
    let access = Access::read(with("s3cret\n")).unwrap();
    let urls = [served.url.clone()];
    let joined = joined((&urls, &access), (&source.tokenizer, &facts), 2.0, &rows, &mut |_| {});
    let joined = joined.unwrap();
    let shown = format!("{:?}", joined.unwrap().0);
    assert!(!shown.contains("s3cret"), "{shown}");
    assert!(served.teacher.mischief.answered.load(std::sync::atomic::Ordering::Relaxed) > 0);
}
