//! Connections the server can close: accepted up to a limit, cut when told to.
//!
//! tonic's graceful shutdown waits for every connection, and one that never sends a byte makes it
//! wait for ever. So each connection is wrapped here: once the server's `cut` is drawn every read
//! and write on it fails, its task ends, and the shutdown with it. A connection that nobody uses is
//! closed too ([`crate::idle`]), or idle peers could use up the limit.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::serve::IncomingStream;
use futures::Stream;
use prometheus_client::metrics::gauge::Gauge;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tonic::transport::server::Connected;

use crate::client::{Client, Peer};
use crate::idle::IdleDeadline;
use crate::metrics::Metrics;

/// How long a connection may stay silent after it was accepted.
const FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(20);
/// Pause after an accept that failed (out of file descriptors, mostly), so as not to spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Between two lines of the log about refused connections.
const REFUSALS_TOLD_EVERY: Duration = Duration::from_secs(10);

/// Draws the cut of all connections that hold its other end. Dropping it draws it too.
#[derive(Debug)]
pub struct Cut(watch::Sender<bool>);

/// The other end of a [`Cut`].
#[derive(Clone, Debug)]
pub struct CutSignal(watch::Receiver<bool>);

impl Cut {
    /// A cut not yet drawn, and its other end.
    pub fn new() -> (Self, CutSignal) {
        let (sender, receiver) = watch::channel(false);
        (Self(sender), CutSignal(receiver))
    }

    /// Closes the connections.
    pub fn draw(&self) {
        self.0.send_replace(true);
    }
}

impl CutSignal {
    async fn drawn(mut self) {
        // An error means the cut was dropped, which counts as drawn.
        let _ = self.0.wait_for(|drawn| *drawn).await;
    }
}

/// Bounds on the connections of one port.
#[derive(Clone, Copy, Debug)]
pub struct PortBounds {
    /// Open at a time.
    pub connections: usize,
    /// How long one may be without an open request.
    pub idle: Duration,
}

/// Accepts connections up to a limit and wraps them.
#[derive(Debug)]
pub struct Acceptor {
    listener: TcpListener,
    bounds: PortBounds,
    room: Arc<Semaphore>,
    refusals: Refusals,
    cut: CutSignal,
    metrics: Metrics,
}

impl Acceptor {
    /// Accepts from `listener` within the bounds, which are this port's own.
    pub fn new(
        listener: TcpListener,
        bounds: PortBounds,
        cut: CutSignal,
        metrics: Metrics,
    ) -> Self {
        let room = Arc::new(Semaphore::new(bounds.connections));
        Self { listener, bounds, room, refusals: Refusals::default(), cut, metrics }
    }

    /// The next connection. One over the limit is closed at once and counted.
    async fn next(&mut self) -> Connection {
        loop {
            let (stream, peer) = match self.listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "accepting a connection failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            match Arc::clone(&self.room).try_acquire_owned() {
                Ok(room) => return self.wrap(stream, peer, room),
                Err(_) => {
                    self.metrics.refused_connections.inc();
                    if let Some(refused) = self.refusals.count(Instant::now()) {
                        let limit = self.bounds.connections;
                        tracing::warn!(
                            refused, limit, last = %peer,
                            "refused connections: as many are open as may be (--max-connections)"
                        );
                    }
                }
            }
        }
    }

    fn wrap(&self, stream: TcpStream, peer: SocketAddr, room: OwnedSemaphorePermit) -> Connection {
        // Replies are small at the end of a sequence; waiting to fill a packet only delays them.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY was not set");
        }
        self.metrics.connections.inc();
        Connection {
            stream,
            client: Client::at(peer),
            cut: Box::pin(self.cut.clone().drawn()),
            idle: IdleDeadline::new(FIRST_BYTE_TIMEOUT, self.bounds.idle),
            open: self.metrics.connections.clone(),
            _room: room,
        }
    }

    /// The connections as the stream tonic takes.
    pub fn into_stream(self) -> impl Stream<Item = io::Result<Connection>> {
        futures::stream::unfold(self, |mut acceptor| async move {
            let connection = acceptor.next().await;
            Some((Ok(connection), acceptor))
        })
    }
}

impl axum::serve::Listener for Acceptor {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        let connection = self.next().await;
        let unknown = SocketAddr::from(([0, 0, 0, 0], 0));
        let peer = connection.stream.peer_addr().unwrap_or(unknown);
        (connection, peer)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// One TCP connection that ends when the server says so.
pub struct Connection {
    stream: TcpStream,
    client: Client,
    cut: Pin<Box<dyn Future<Output = ()> + Send>>,
    idle: IdleDeadline,
    open: Gauge,
    _room: OwnedSemaphorePermit,
}

impl Connection {
    /// Fails once the cut is drawn, and wakes the connection's task when that happens.
    fn uncut(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.cut.as_mut().poll(cx) {
            Poll::Pending => Ok(()),
            Poll::Ready(()) => {
                // A future that was ready must not be polled again.
                self.cut = Box::pin(std::future::ready(()));
                let text = "the server closed the connection";
                Err(io::Error::new(io::ErrorKind::ConnectionAborted, text))
            }
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.open.dec();
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.uncut(cx)?;
        let before = buf.filled().len();
        let polled = Pin::new(&mut this.stream).poll_read(cx, buf);
        if polled.is_ready() && buf.filled().len() > before {
            this.idle.heard();
        }
        if polled.is_pending() && this.idle.has_passed(cx) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        polled
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.uncut(cx)?;
        Pin::new(&mut this.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.uncut(cx)?;
        Pin::new(&mut this.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.uncut(cx)?;
        Pin::new(&mut this.stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        Peer { client: self.client.clone(), requests: self.idle.requests().clone() }
    }
}

impl axum::extract::connect_info::Connected<IncomingStream<'_, Acceptor>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Acceptor>) -> Self {
        Connected::connect_info(stream.io())
    }
}

/// When to say that connections are refused: at once, then how many there were now and then, so
/// that a flood of them is none of the log's.
#[derive(Debug, Default)]
struct Refusals {
    untold: u64,
    told: Option<Instant>,
}

impl Refusals {
    /// Counts one; gives the number there were since the last time when it is time to say it.
    fn count(&mut self, now: Instant) -> Option<u64> {
        self.untold += 1;
        if self.told.is_some_and(|told| now < told + REFUSALS_TOLD_EVERY) {
            return None;
        }
        self.told = Some(now);
        Some(std::mem::take(&mut self.untold))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_told_at_once_and_then_counted_for_a_while() {
        let (mut refusals, begin) = (Refusals::default(), Instant::now());
        assert_eq!(refusals.count(begin), Some(1));
        for _ in 0..5000 {
            assert_eq!(refusals.count(begin + REFUSALS_TOLD_EVERY / 2), None);
        }
        assert_eq!(refusals.count(begin + REFUSALS_TOLD_EVERY), Some(5001));
        assert_eq!(refusals.count(begin + REFUSALS_TOLD_EVERY), None);
    }
}
