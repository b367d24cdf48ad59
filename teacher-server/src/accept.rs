//! Accepting connections: up to a limit, through the TLS handshake where there is one, each in a task
//! of its own so that nobody keeps others waiting.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::Stream;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;

use crate::client::Client;
use crate::connection::{Connection, CutSignal, Open, Wire};
use crate::idle::IdleDeadline;
use crate::metrics::{Metrics, PortLabels};
use crate::room::{Room, Taken};
use crate::seldom::Seldom;
use crate::tls::Tls;

/// How long a connection may stay silent after it was accepted.
const FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(20);
/// Longest TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a refused peer may take to read why.
const GOODBYE: Duration = Duration::from_secs(1);
/// Connections that are ready and not yet taken over by a server.
const READY: usize = 16;
/// Pause after an accept that failed (out of file descriptors, mostly), so as not to spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Between two lines of the log about refused connections, or about failed handshakes.
const REFUSALS_TOLD_EVERY: Duration = Duration::from_secs(10);

/// What the connections of one port may do and how they speak.
#[derive(Clone)]
pub struct Port {
    /// Open at a time; a client may have as many as are still free.
    pub connections: usize,
    /// Whose a connection is, before anything was said on it.
    pub whose: fn(SocketAddr) -> Client,
    /// How long one may be without an open request.
    pub idle: Duration,
    /// How long an answer may be left unread and its request still count as open.
    pub reader: Duration,
    /// Encryption, where there is any.
    pub tls: Option<Tls>,
    /// What is spoken, as TLS names it (ALPN).
    pub protocol: &'static [u8],
}

/// Accepts connections up to a limit and wraps them.
pub struct Acceptor {
    listener: TcpListener,
    port: Port,
    room: Room,
    refusals: Seldom,
    failures: Arc<Mutex<Seldom>>,
    cut: CutSignal,
    metrics: Metrics,
}

impl Acceptor {
    /// Accepts from `listener` within the port's own bounds.
    pub fn new(listener: TcpListener, port: Port, cut: CutSignal, metrics: Metrics) -> Self {
        let room = Room::new(port.connections);
        let refusals = Seldom::every(REFUSALS_TOLD_EVERY);
        let failures = Arc::new(Mutex::new(Seldom::every(REFUSALS_TOLD_EVERY)));
        Self { listener, port, room, refusals, failures, cut, metrics }
    }

    /// Begins to accept, in a task of its own, so that nobody's handshake keeps others waiting.
    pub fn start(mut self) -> Incoming {
        let (ready, connections) = mpsc::channel(READY);
        tokio::spawn(async move {
            let accept = async {
                loop {
                    let (stream, peer, room) = self.next().await;
                    let opening = self.opening(stream, peer, room);
                    let ready = ready.clone();
                    tokio::spawn(async move {
                        if let Some(connection) = opening.await {
                            // Nobody takes it when the server ends.
                            let _ = ready.send(connection).await;
                        }
                    });
                }
            };
            tokio::select! { () = accept => {} () = ready.closed() => {} }
        });
        Incoming { connections }
    }

    /// The next connection that there is room for. One over the limit, or over its client's share, is
    /// closed at once and counted.
    async fn next(&mut self) -> (TcpStream, SocketAddr, Taken) {
        loop {
            let (stream, peer) = match self.listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "accepting a connection failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            match self.room.take(&(self.port.whose)(peer), 1) {
                Some(room) => return (stream, peer, room),
                None => {
                    self.metrics.refused_connections.inc();
                    if let Some(refused) = self.refusals.count(Instant::now()) {
                        let limit = self.port.connections;
                        tracing::warn!(
                            refused, limit, last = %peer,
                            "refused connections: as many are open as may be (--max-connections), of \
                             which a client may have as many as are still free"
                        );
                    }
                }
            }
        }
    }

    /// The connection once it can be spoken over: at once in plaintext, after the handshake in TLS;
    /// none when that fails or takes too long.
    fn opening(
        &self,
        stream: TcpStream,
        peer: SocketAddr,
        room: Taken,
    ) -> impl Future<Output = Option<Connection>> + use<> {
        // Replies are small at the end of a sequence; waiting to fill a packet only delays them.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY was not set");
        }
        let (cut, idle, reader) = (self.cut.clone(), self.port.idle, self.port.reader);
        let port = if self.port.protocol == b"h2" { "grpc" } else { "http" };
        let sent = self.metrics.sent_bytes.get_or_create(&PortLabels { port }).clone();
        let open = Open::count(&self.metrics.connections);
        let (metrics, failures) = (self.metrics.clone(), Arc::clone(&self.failures));
        let config = self.port.tls.as_ref().map(|tls| tls.config(self.port.protocol));
        async move {
            let (wire, client, certified) = match config {
                None => (Box::new(stream) as Box<dyn Wire>, Client::at(peer), false),
                Some(config) => match handshake(stream, config, cut.clone()).await {
                    Ok((stream, certificate)) => {
                        let client = certificate.as_deref().map(certified_client);
                        let certified = client.is_some();
                        (stream, client.unwrap_or_else(|| Client::at(peer)), certified)
                    }
                    Err(reason) => {
                        metrics.refused("handshake");
                        let mut untold = failures.lock().unwrap_or_else(PoisonError::into_inner);
                        if let Some(failed) = untold.count(Instant::now()) {
                            tracing::info!(failed, last = %peer, reason, "TLS handshakes failed");
                        }
                        return None;
                    }
                },
            };
            let idle = IdleDeadline::new(FIRST_BYTE_TIMEOUT, idle, reader);
            Some(Connection::new(wire, (client, certified), cut, idle, sent, (open, room)))
        }
    }
}

/// Shakes hands within a time; gives the stream, and the certificate the client showed, if any.
async fn handshake(
    stream: TcpStream,
    config: Arc<rustls::ServerConfig>,
    cut: CutSignal,
) -> Result<(Box<dyn Wire>, Option<Vec<u8>>), String> {
    let accept = TlsAcceptor::from(config).accept(stream).into_fallible();
    let accepted = tokio::select! {
        accepted = tokio::time::timeout(HANDSHAKE_TIMEOUT, accept) => accepted,
        () = cut.drawn() => return Err("the server ends".to_owned()),
    };
    let stream = match accepted {
        Err(_) => return Err(format!("not done within {} s", HANDSHAKE_TIMEOUT.as_secs())),
        Ok(Ok(stream)) => stream,
        Ok(Err((error, stream))) => {
            tokio::spawn(say_goodbye(stream));
            return Err(error.to_string());
        }
    };
    let shown = stream.get_ref().1.peer_certificates();
    let certificate = shown.and_then(|chain| chain.first()).map(|first| first.to_vec());
    Ok((Box::new(stream), certificate))
}

/// Closes a connection so that the peer can read what was said last, the reason of a refusal: closed
/// with bytes unread it would be reset, and that lost.
async fn say_goodbye(mut stream: TcpStream) {
    // Whether the peer hears it is up to the peer.
    let _ = stream.shutdown().await;
    let mut unheard = tokio::io::sink();
    let read = tokio::io::copy(&mut stream, &mut unheard);
    let _ = tokio::time::timeout(GOODBYE, read).await;
}

/// A client known by its certificate: the first digits of its BLAKE3 digest name it.
fn certified_client(certificate: &[u8]) -> Client {
    Client::named(&format!("certificate {}", &blake3::hash(certificate).to_hex()[..16]))
}

/// Connections that can be spoken over.
pub struct Incoming {
    connections: mpsc::Receiver<Connection>,
}

impl Incoming {
    /// The next one; none when nothing is accepted any more.
    pub async fn next(&mut self) -> Option<Connection> {
        self.connections.recv().await
    }

    /// The connections as the stream tonic takes.
    pub fn into_stream(self) -> impl Stream<Item = io::Result<Connection>> {
        futures::stream::unfold(self, |mut incoming| async move {
            Some((Ok(incoming.next().await?), incoming))
        })
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;
    use tokio::net::TcpSocket;

    use super::*;
    use crate::connection::Cut;

    /// Connects from an address of this machine's.
    async fn connect(from: &str, to: SocketAddr) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(format!("{from}:0").parse().unwrap()).unwrap();
        socket.connect(to).await.unwrap()
    }

    #[tokio::test]
    async fn one_address_cannot_keep_others_from_connecting() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let port = Port {
            connections: 8,
            whose: |peer| Client::named(&peer.ip().to_string()),
            idle: Duration::from_secs(60),
            reader: Duration::from_secs(60),
            tls: None,
            protocol: b"h2",
        };
        let ((_cut, cut), metrics) = (Cut::new(), Metrics::default());
        let acceptor = Acceptor::new(listener, port, cut, metrics.clone());
        let mut incoming = acceptor.start();
        let (mut open, mut opened) = (Vec::new(), [0; 5]);
        // Half of what there is, half of what is left, and so on.
        for (host, opened) in (2..7).zip(&mut opened) {
            for _ in 0..10 {
                let mut byte = [0];
                let refused = metrics.refused_connections.get();
                let mut stream = connect(&format!("127.0.0.{host}"), at).await;
                tokio::select! {
                    Some(connection) = incoming.next() => {
                        *opened += 1;
                        open.push((stream, connection));
                    }
                    closed = stream.read(&mut byte) => {
                        assert!(matches!(closed, Ok(0) | Err(_)), "{closed:?}");
                        assert_eq!(metrics.refused_connections.get(), refused + 1);
                    }
                }
            }
        }
        assert_eq!(opened, [4, 2, 1, 1, 0]);
        // What has come free is for those who have least.
        open.drain(..4);
        let fifth = connect("127.0.0.6", at).await;
        assert!(incoming.connections.recv().await.is_some());
        drop(fifth);
    }
}
