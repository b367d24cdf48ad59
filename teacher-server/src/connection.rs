//! Connections the server can close: each is cut when it is told to.
//!
//! tonic's graceful shutdown waits for every connection, and one that never sends a byte makes it
//! wait for ever. So each connection is wrapped here: once the server's `cut` is drawn every read
//! and write on it fails, its task ends, and the shutdown with it. A connection that nobody uses is
//! closed too ([`crate::idle`]), or idle peers could use up the limit.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;
use tonic::transport::server::Connected;

use crate::client::{Client, Peer};
use crate::idle::IdleDeadline;
use crate::room::Taken;

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
    /// Completes when the cut is drawn.
    pub(crate) async fn drawn(mut self) {
        // An error means the cut was dropped, which counts as drawn.
        let _ = self.0.wait_for(|drawn| *drawn).await;
    }
}

/// What bytes travel over.
pub(crate) trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// One connection among the open ones.
pub(crate) struct Open(Gauge);

impl Open {
    /// Counts until it is dropped.
    pub(crate) fn count(open: &Gauge) -> Self {
        open.inc();
        Self(open.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// One connection that ends when the server says so.
pub struct Connection {
    wire: Box<dyn Wire>,
    client: Client,
    certified: bool,
    cut: Pin<Box<dyn Future<Output = ()> + Send>>,
    idle: IdleDeadline,
    sent: Counter,
    _open: Open,
    _room: Taken,
}

impl Connection {
    /// A connection over `wire`, ending at the cut or when idle for too long; what it holds among
    /// the open ones ends with it.
    pub(crate) fn new(
        wire: Box<dyn Wire>,
        (client, certified): (Client, bool),
        cut: CutSignal,
        idle: IdleDeadline,
        sent: Counter,
        (open, room): (Open, Taken),
    ) -> Self {
        let cut = Box::pin(cut.drawn());
        Self { wire, client, certified, cut, idle, sent, _open: open, _room: room }
    }

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

    /// What writing bytes came to, and how many they were.
    fn counted(
        &mut self,
        polled: Poll<io::Result<usize>>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = polled {
            self.sent.inc_by(bytes as u64);
        }
        self.unless_idle(polled, cx)
    }

    /// What writing came to; where it has to wait, that only while the connection is in use: a peer
    /// that reads nothing keeps the server from reading, too.
    fn unless_idle<T>(
        &mut self,
        polled: Poll<io::Result<T>>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        match polled {
            Poll::Pending if self.idle.has_passed(cx) => {
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            }
            polled @ (Poll::Ready(_) | Poll::Pending) => polled,
        }
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
        let polled = Pin::new(&mut this.wire).poll_read(cx, buf);
        if polled.is_ready() && buf.filled().len() > before {
            this.idle.heard();
        }
        // Whether or not there is more to read: a flood may come faster than it can be.
        match this.idle.has_passed(cx) {
            true => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            false => polled,
        }
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
        let polled = Pin::new(&mut this.wire).poll_write(cx, buf);
        this.counted(polled, cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.uncut(cx)?;
        let polled = Pin::new(&mut this.wire).poll_write_vectored(cx, bufs);
        this.counted(polled, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.wire.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.uncut(cx)?;
        let polled = Pin::new(&mut this.wire).poll_flush(cx);
        this.unless_idle(polled, cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.wire).poll_shutdown(cx);
        this.unless_idle(polled, cx)
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        Peer {
            client: self.client.clone(),
            certified: self.certified,
            requests: self.idle.requests().clone(),
        }
    }
}
