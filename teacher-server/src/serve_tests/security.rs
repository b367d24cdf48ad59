//! Who is let in: every call of every service asks, encryption is real, and what is wrong with a
//! certificate is said.

use std::path::Path;
use std::time::Duration;

use prost::Message as _;
use proto::convert::score_request;
use proto::v1::GetInfoRequest;
use proto::v1::teacher_client::TeacherClient;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tonic::metadata::MetadataValue;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request, Status};

use super::bad_input::{Noise, answer};
use super::dialects::said;
use super::harness::{CLASSES, PATIENCE, Server, assert_right, job};
use crate::access::Access;
use crate::health::{ProbeTls, probe};
use crate::metrics::Metrics;
use crate::settings::Settings;
use crate::state::State;
use crate::testing::FakeScorer;
use crate::tls::{Tls, TlsFiles};
use crate::{Guard, ServeError, http};

pub(super) const TOKEN: &str = "alice-0123456789abcdef";

/// An authority, and the files of certificates made by it.
pub(super) struct Authority {
    dir: TempDir,
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    pub(super) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        // Each has a name of its own, as real ones have.
        let name = blake3::hash(key.public_key_raw()).to_hex().to_string();
        params.distinguished_name.push(DnType::CommonName, name);
        let pem = params.self_signed(&key).unwrap().pem();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ca.pem"), &pem).unwrap();
        Self { dir, issuer: Issuer::new(params, key), pem }
    }

    /// Certificate and key for a host; over when its time is.
    fn certificate(&self, host: &str, expired: bool) -> (String, String) {
        let mut params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        if expired {
            params.not_after = date_time_ymd(2020, 1, 1);
        }
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    /// The server's files with a certificate for a host.
    pub(super) fn files(&self, host: &str, expired: bool, client_ca: bool) -> TlsFiles {
        let path = |name: &str| self.dir.path().join(name);
        let (cert, key) = self.certificate(host, expired);
        std::fs::write(path("cert.pem"), cert).unwrap();
        std::fs::write(path("key.pem"), key).unwrap();
        let client_ca = client_ca.then(|| path("ca.pem"));
        TlsFiles { cert: path("cert.pem"), key: path("key.pem"), client_ca }
    }

    fn client(&self, name: &str) -> ClientTlsConfig {
        ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&self.pem)).domain_name(name)
    }
}

pub(super) async fn start(guard: Guard, settings: Settings) -> Server {
    let load = || Ok(FakeScorer::new(CLASSES).loaded());
    let mut server = Server::start_guarded(load, settings, guard).await;
    server.ready().await;
    server
}

pub(super) async fn encrypted(files: TlsFiles) -> (Server, Tls) {
    let tls = Tls::new(files.clone()).unwrap();
    let access = Access::new(None, files.client_ca.is_some()).unwrap();
    (start(Guard { access, tls: Some(tls.clone()) }, Settings::DEFAULT).await, tls)
}

pub(super) fn tokens(dir: &Path) -> Guard {
    let file = dir.join("tokens");
    std::fs::write(&file, format!("alice {TOKEN}\n")).unwrap();
    Guard { access: Access::new(Some(&file), false).unwrap(), tls: None }
}

async fn connect(server: &Server, tls: ClientTlsConfig) -> Result<Channel, String> {
    let endpoint = Endpoint::from_shared(format!("https://{}", server.grpc)).unwrap();
    let endpoint = endpoint.tls_config(tls).map_err(|error| error.to_string())?;
    endpoint.connect().await.map_err(|error| format!("{error:?}"))
}

/// What the server says of a client's certificate, at the level of TLS. In TLS 1.3 that is after the
/// handshake, when the client has sent its first words.
async fn refusal(server: &Server, authority: &Authority, certificate: &(String, String)) -> String {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.pem.as_bytes()).unwrap()).unwrap();
    let (cert, key) = certificate;
    let chain = vec![CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let provider = rustls::crypto::ring::default_provider().into();
    let builder = rustls::ClientConfig::builder_with_provider(provider);
    let builder = builder.with_safe_default_protocol_versions().unwrap();
    let config = builder.with_root_certificates(roots).with_client_auth_cert(chain, key).unwrap();
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
    let connection = TcpStream::connect(server.grpc).await.unwrap();
    let name = "teacher".try_into().unwrap();
    let talk = async {
        let mut connection = connector.connect(name, connection).await?;
        for word in [b"PRI * HTTP/2.0\r\n\r\n".as_slice(), b"SM\r\n\r\n"] {
            // Late enough for the server to have closed, were it to close at once: then the second
            // word could not be sent, and what it said before would go unread.
            tokio::time::sleep(Duration::from_millis(20)).await;
            connection.write_all(word).await?;
        }
        connection.read_u8().await
    };
    talk.await.unwrap_err().to_string()
}

async fn info(channel: Channel) -> Result<(), Status> {
    TeacherClient::new(channel).get_info(GetInfoRequest {}).await.map(|_| ())
}

/// Every method of the services this server has, as `/service/Method`.
fn methods() -> Vec<String> {
    let mut methods = Vec::new();
    for bytes in [proto::DESCRIPTORS, tonic_health::pb::FILE_DESCRIPTOR_SET] {
        let set = prost_types::FileDescriptorSet::decode(bytes).unwrap();
        for file in set.file {
            for service in &file.service {
                let name = format!("{}.{}", file.package(), service.name());
                let all = service.method.iter().map(|method| format!("/{name}/{}", method.name()));
                methods.extend(all);
            }
        }
    }
    for version in ["v1", "v1alpha"] {
        methods.push(format!("/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"));
    }
    methods
}

#[tokio::test(flavor = "multi_thread")]
async fn no_call_of_any_service_lets_a_stranger_in_but_health() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(tokens(dir.path()), Settings::DEFAULT).await;
    let methods = methods();
    assert!(methods.len() >= 7, "{methods:?}");
    for method in &methods {
        let status = answer::<Noise>(&server, method, vec![]).await;
        let wanted = match method.starts_with("/grpc.health.v1.Health/") {
            true => Code::InvalidArgument,
            false => Code::Unauthenticated,
        };
        assert_eq!(status.code(), wanted, "{method}: {status}");
    }
    // A method nobody has is no way to find out which there are.
    let status = answer::<Noise>(&server, "/distill.v1.Teacher/Secret", vec![]).await;
    assert_eq!(status.code(), Code::Unauthenticated);
    probe(&server.grpc.to_string(), None, PATIENCE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn no_path_of_http_lets_a_stranger_in_but_health() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(tokens(dir.path()), Settings::DEFAULT).await;
    let (_state, states) = watch::channel(State::Loading);
    let paths = http::paths(Metrics::default(), states).map(|(path, _)| path);
    // A path nobody has is no way to find out which there are.
    for path in paths.into_iter().chain(["/", "/secret"]) {
        for path in [path.to_owned(), format!("{path}/"), format!("/{path}")] {
            for method in ["GET", "POST", "PUT"] {
                let request = format!("{method} {path} HTTP/1.0\r\nContent-Length: 2\r\n\r\n{{}}");
                let answer = said(&server, &request).await;
                let health = path.trim_matches('/') == "health";
                let wanted = match method {
                    "GET" if health => " 200 ",
                    _ if health => " 405 ",
                    _ => " 401 ",
                };
                let status = answer.lines().next().unwrap_or_default();
                assert!(status.contains(wanted), "{method} {path}: {answer}");
                let told = answer.contains("authorization: Bearer");
                assert_eq!(told, !health, "{method} {path}: {answer}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_has_a_token_is_served_and_a_wrong_one_is_not_repeated() {
    let dir = tempfile::tempdir().unwrap();
    let guard = tokens(dir.path());
    let server = start(guard.clone(), Settings::DEFAULT).await;
    let ask = async |token: &str| {
        let mut request = Request::new(GetInfoRequest {});
        let value: MetadataValue<_> = format!("Bearer {token}").parse().unwrap();
        request.metadata_mut().insert("authorization", value);
        server.client().await.get_info(request).await
    };
    ask(TOKEN).await.unwrap();
    let status = ask("mallory-0123456789abcdef").await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    assert!(!status.message().contains("mallory") && !status.message().contains("alice"));
    // Another token from now on; the old one is none any more.
    std::fs::write(dir.path().join("tokens"), "bob-0123456789abcdef").unwrap();
    guard.reload();
    ask("bob-0123456789abcdef").await.unwrap();
    assert_eq!(ask(TOKEN).await.unwrap_err().code(), Code::Unauthenticated);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_the_servers_certificate_is_said() {
    let authority = Authority::new();
    let (server, tls) = encrypted(authority.files("teacher", false, false)).await;
    let good = connect(&server, authority.client("teacher")).await.unwrap();
    info(good.clone()).await.unwrap();
    let mut teacher = TeacherClient::new(good);
    let asked = job(1, vec![1, 2, 3]);
    let requests = tokio_stream::once(score_request(&asked));
    let mut replies = teacher.score(requests).await.unwrap().into_inner();
    let reply = replies.message().await.unwrap().unwrap();
    let scored = super::harness::assembler(&asked).push(&reply).unwrap().unwrap();
    assert_right(&asked, &scored);

    let wrong_name = connect(&server, authority.client("other")).await.unwrap_err();
    assert!(wrong_name.contains("NotValidForName"), "{wrong_name}");
    let stranger = Authority::new();
    let wrong_authority = connect(&server, stranger.client("teacher")).await.unwrap_err();
    assert!(wrong_authority.contains("UnknownIssuer"), "{wrong_authority}");
    // The probe, with the same certificate.
    let ask = |name: Option<&str>| ProbeTls {
        authority: authority.pem.clone(),
        name: name.map(str::to_owned),
    };
    probe(&server.grpc.to_string(), Some(ask(Some("teacher"))), PATIENCE).await.unwrap();
    let wrong = probe(&server.grpc.to_string(), Some(ask(None)), PATIENCE).await.unwrap_err();
    assert!(wrong.to_string().contains("not valid for name"), "{wrong}");

    authority.files("teacher", true, false);
    tls.reload().unwrap();
    let expired = connect(&server, authority.client("teacher")).await.unwrap_err();
    assert!(expired.contains("Expired"), "{expired}");
    // A file that is none changes nothing.
    std::fs::write(authority.dir.path().join("cert.pem"), "no certificate").unwrap();
    let error = tls.reload().unwrap_err().to_string();
    assert!(error.contains("--tls-cert") && error.contains("cert.pem"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn mutual_tls_asks_for_a_certificate_of_the_right_authority() {
    let authority = Authority::new();
    let (server, _) = encrypted(authority.files("teacher", false, true)).await;
    let with = |(cert, key): (String, String)| {
        authority.client("teacher").identity(Identity::from_pem(cert, key))
    };
    let good = connect(&server, with(authority.certificate("student", false))).await.unwrap();
    info(good).await.unwrap();
    let none = connect(&server, authority.client("teacher")).await.unwrap();
    let status = info(none).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated, "{status}");
    assert!(status.message().contains("client certificate"), "{status}");
    for (certificate, says) in [
        (authority.certificate("student", true), "CertificateExpired"),
        (Authority::new().certificate("student", false), "UnknownCA"),
    ] {
        // More than once: a connection closed too soon loses the reason now and then.
        for _ in 0..20 {
            let refused = refusal(&server, &authority, &certificate).await;
            assert!(refused.contains(says), "{says}: {refused}");
        }
    }
    let ask = ProbeTls { authority: authority.pem.clone(), name: Some("teacher".into()) };
    probe(&server.grpc.to_string(), Some(ask), PATIENCE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn neither_plaintext_nor_silence_on_an_encrypted_port_harms_anybody() {
    let authority = Authority::new();
    let (mut server, _) = encrypted(authority.files("teacher", false, false)).await;
    let http2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    for address in [server.grpc, server.http] {
        for bytes in [http2, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"] {
            let mut connection = TcpStream::connect(address).await.unwrap();
            connection.write_all(bytes).await.unwrap();
            let mut answer = Vec::new();
            let read = connection.read_to_end(&mut answer);
            assert!(tokio::time::timeout(PATIENCE, read).await.is_ok());
            assert!(!answer.starts_with(b"HTTP/1.1 2"), "{answer:?}");
        }
    }
    let channel = connect(&server, authority.client("teacher")).await.unwrap();
    info(channel).await.unwrap();
    let silent = TcpStream::connect(server.grpc).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    server.stop();
    let ended: Result<Result<(), ServeError>, _> =
        tokio::time::timeout(Duration::from_secs(5), server.end()).await;
    ended.expect("the server ends in spite of a silent handshake").unwrap();
    drop(silent);
}
