//! Puts the parts together and runs them from the first connection to the last.

use std::convert::Infallible;
use std::future::{Future, ready};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::middleware::{from_fn, from_fn_with_state, map_request};
use distill::handshake::TeacherFacts;
use distill::queue::QueueBounds;
use proto::v1::teacher_server::TeacherServer;
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tonic::server::NamedService;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::accept::{Acceptor, Incoming, Port};
use crate::access;
use crate::client::Client;
use crate::connection::{Cut, CutSignal};
use crate::deadline;
use crate::desk::Desk;
use crate::dialects::Counter;
use crate::engine::{Batching, Engine, Ready, Started};
use crate::guard::Guard;
use crate::idle;
use crate::metrics::Metrics;
use crate::protocol;
use crate::scorer::{LoadError, Loaded};
use crate::service::TeacherService;
use crate::settings::{Settings, SettingsError};
use crate::shutdown::Calls;
use crate::spans;
use crate::state::{Serving, State};
use crate::unfinished::Unfinished;
use crate::unreadable;
use crate::watches::{self, Watches};

/// HTTP/2 flow-control windows: what a client may have in flight to us, and so what its slow
/// handling can make us hold. h2 ends a connection whose DATA frames wait unread and are small: each
/// costs what it lacks of 256 bytes, of half the connection's window. Clients that put every request
/// into a frame of its own (grpc-go) and send far ahead would be taken for attackers, were a stream's
/// window not that much smaller: three streams full of requests of 22 bytes are within it.
const STREAM_WINDOW: u32 = 1 << 16;
const CONNECTION_WINDOW: u32 = 4 << 20;
/// Calls a connection may have ended by errors of its own, in all. tonic by itself sets no limit to
/// it (RUSTSEC-2024-0003).
const MOST_ERRORS: usize = 1024;
/// Calls of a connection that may be opened and reset before they were looked at (CVE-2023-44487).
const MOST_RESETS: usize = 20;
/// Large frames double the throughput of megabyte messages.
const FRAME_BYTES: u32 = (1 << 20) - 1;
const KEEPALIVE_EVERY: Duration = Duration::from_secs(30);
const KEEPALIVE_PATIENCE: Duration = Duration::from_secs(10);
/// Longest time without a request on the HTTP port. A request is none before its head is complete,
/// so this also ends heads sent a byte at a time; opening another connection costs next to nothing.
const HTTP_IDLE_TIMEOUT: Duration = Duration::from_secs(20);
/// What a connection without work gets between the end of the work and the cut, to take leave.
const LEAVE_TIME: Duration = Duration::from_secs(1);

/// The two sockets, bound by the caller, who therefore knows their ports.
#[derive(Debug)]
pub struct Listeners {
    /// For gRPC.
    pub grpc: TcpListener,
    /// For `/metrics`, `/health` and the dialects.
    pub http: TcpListener,
}

/// Why the server ended without being told to, or never began.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// An address that cannot be listened on.
    #[error("cannot listen on {address} ({flag})")]
    Bind {
        /// The flag it came from.
        flag: &'static str,
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The thread for the device was refused.
    #[error("the system gave no thread for the device")]
    Thread(#[source] io::Error),
    /// The model could not be loaded, or gives nothing to serve.
    #[error("the model cannot be served")]
    Load(#[source] LoadError),
    /// Loading panicked.
    #[error("loading the model met a bug (the panic is in the log)")]
    LoadPanicked,
    /// Bounds that do not suit the model.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The descriptors for reflection are broken.
    #[error("the descriptors for reflection cannot be read")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// The thread that owns the device ended.
    #[error("the thread that owns the device ended unexpectedly")]
    DeviceLost,
    /// A listener failed.
    #[error("serving {what} ended: {reason}")]
    Listener {
        /// gRPC or HTTP.
        what: &'static str,
        /// Why.
        reason: String,
    },
}

impl Listeners {
    /// Binds both addresses.
    ///
    /// # Errors
    /// [`ServeError::Bind`] naming the flag.
    pub async fn bind(grpc: SocketAddr, http: SocketAddr) -> Result<Self, ServeError> {
        let bind = async |flag, address| {
            let failed = |source| ServeError::Bind { flag, address, source };
            TcpListener::bind(address).await.map_err(failed)
        };
        Ok(Self { grpc: bind("--listen", grpc).await?, http: bind("--http-listen", http).await? })
    }
}

/// Serves until `shutdown` completes, then drains: within `settings.limits.drain_timeout` it returns
/// whatever the clients do.
///
/// `load` runs on the thread that will own the device; health is NOT_SERVING until it is done.
/// `ready` is called once, when work is accepted.
///
/// # Errors
/// [`ServeError`]: the model could not be loaded or its thread was lost.
pub async fn serve(
    listeners: Listeners,
    load: impl FnOnce() -> Result<Loaded, LoadError> + Send + 'static,
    settings: Settings,
    guard: Guard,
    ready: impl FnOnce(&TeacherFacts),
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let metrics = Metrics::default();
    let bounds = QueueBounds {
        sequences: settings.limits.max_queued_sequences,
        tokens: settings.limits.max_queued_tokens,
    };
    let batching =
        Batching { max_tokens: settings.limits.max_batch_tokens, wait: settings.limits.batch_wait };
    let started = Engine::start(load, bounds, batching, metrics.clone());
    let Started { engine, ready: loaded, ended } = started.map_err(ServeError::Thread)?;
    let mut device = DeviceThread { engine: engine.clone(), ended };
    let mut servers = JoinSet::new();
    let house = House::open(listeners, engine, settings, guard, metrics, &mut servers).await?;

    tokio::pin!(shutdown);
    let is_loaded = tokio::select! {
        facts = house.begin(loaded) => {
            ready(&facts?);
            true
        }
        ended = servers.join_next() => return Err(listener_ended(ended)),
        () = &mut shutdown => false,
    };
    if is_loaded {
        tokio::select! {
            () = &mut shutdown => {}
            ended = servers.join_next() => return Err(listener_ended(ended)),
            _ = &mut device.ended => return Err(ServeError::DeviceLost),
        }
    }
    let deadline = house.drain(&mut servers).await;
    // Loading knows no end but its own, and leaves nothing to be done.
    if is_loaded {
        device.end(deadline).await;
    }
    tracing::info!("stopped");
    Ok(())
}

/// The two servers' tasks; dropping it ends them.
type Servers = JoinSet<Result<(), ServeError>>;

/// The running parts.
struct House {
    state: watch::Sender<State>,
    health: HealthReporter,
    calls: Calls,
    desk: Desk,
    unfinished: Unfinished,
    settings: Settings,
    guard: Guard,
    metrics: Metrics,
    /// Dropping it asks the gRPC server to say goodbye to its clients.
    leave: oneshot::Sender<()>,
    cut: Cut,
    cut_signal: CutSignal,
}

impl House {
    /// Starts both servers; nothing is accepted yet.
    async fn open(
        listeners: Listeners,
        engine: Engine,
        settings: Settings,
        guard: Guard,
        metrics: Metrics,
        servers: &mut Servers,
    ) -> Result<Self, ServeError> {
        let (cut, cut_signal) = Cut::new();
        let (leave, left) = oneshot::channel();
        let state = watch::Sender::new(State::Loading);
        let calls = Calls::default();
        let watched = state.subscribe();
        let desk = Desk::new(engine, watched, calls.clone(), &settings.limits, metrics.clone());
        let unfinished = Unfinished::new(&settings.limits, metrics.clone());
        let house = Self {
            state,
            health: HealthReporter::new(),
            calls,
            desk,
            unfinished,
            settings,
            guard,
            metrics,
            leave,
            cut,
            cut_signal,
        };
        house.report(ServingStatus::NotServing).await;
        servers.spawn(house.grpc(listeners.grpc, left)?);
        servers.spawn(house.http(listeners.http));
        Ok(house)
    }

    fn incoming(&self, listener: TcpListener, idle: Duration, protocol: &'static [u8]) -> Incoming {
        let connections = self.settings.limits.max_connections;
        let reader = self.settings.limits.reader_timeout;
        let (whose, tls) = (Client::at, self.guard.tls.clone());
        let port = Port { connections, whose, idle, reader, tls, protocol };
        let (cut, metrics) = (self.cut_signal.clone(), self.metrics.clone());
        Acceptor::new(listener, port, cut, metrics).start()
    }

    fn grpc(
        &self,
        listener: TcpListener,
        left: oneshot::Receiver<()>,
    ) -> Result<impl Future<Output = Result<(), ServeError>> + use<>, ServeError> {
        let limits = self.settings.limits;
        let service = TeacherService::new(self.desk.clone(), &limits);
        let teacher =
            TeacherServer::new(service).max_decoding_message_size(limits.max_request_bytes);
        let health = tonic_health::pb::health_server::HealthServer::new(
            tonic_health::server::HealthService::from_health_reporter(self.health.clone()),
        );
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        let unfinished = self.unfinished.clone();
        let watches = Watches::new(&limits, self.metrics.clone());
        let asked = (self.guard.access.clone(), self.metrics.clone());
        let routes = Routes::new(teacher)
            .add_service(health)
            .add_service(reflection().build_v1()?)
            .add_service(reflection().build_v1alpha()?)
            .into_axum_router()
            .layer(from_fn(unreadable::blame_sender))
            .layer(from_fn_with_state(watches, watches::bound))
            .layer(from_fn(deadline::keep))
            .layer(map_request(move |request| ready(unfinished.bound(request))))
            .layer(from_fn(protocol::check))
            .layer(from_fn_with_state(asked, access::ask))
            .layer(from_fn(idle::count_request))
            .layer(from_fn(spans::follow));
        let streams = u32::try_from(limits.max_streams_per_connection).unwrap_or(u32::MAX);
        let server = Server::builder()
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(FRAME_BYTES)
            .max_concurrent_streams(streams)
            .http2_max_local_error_reset_streams(Some(MOST_ERRORS))
            .http2_max_pending_accept_reset_streams(Some(MOST_RESETS))
            .http2_keepalive_interval(Some(KEEPALIVE_EVERY))
            .http2_keepalive_timeout(Some(KEEPALIVE_PATIENCE))
            .add_routes(routes.into());
        let incoming = self.incoming(listener, limits.idle_timeout, b"h2").into_stream();
        Ok(async move {
            // An error means the sender was dropped, which asks for the same.
            let left = async { drop(left.await) };
            let served = server.serve_with_incoming_shutdown(incoming, left).await;
            served.map_err(|error| ServeError::Listener { what: "gRPC", reason: error.to_string() })
        })
    }

    fn http(&self, listener: TcpListener) -> impl Future<Output = Result<(), ServeError>> + use<> {
        let counter = Counter::new(self.desk.clone(), self.unfinished.clone());
        let routes = crate::http::routes(self.metrics.clone(), self.state.subscribe(), counter);
        let asked = (self.guard.access.clone(), self.metrics.clone());
        let routes = routes
            .layer(from_fn_with_state(asked, access::ask))
            .layer(from_fn(idle::count_request))
            .layer(from_fn(spans::follow));
        let routes = crate::http::on_plain_paths(routes);
        let idle = self.settings.limits.idle_timeout.min(HTTP_IDLE_TIMEOUT);
        let incoming = self.incoming(listener, idle, b"http/1.1");
        async move {
            crate::http::serve(incoming, routes).await;
            let reason = "connections are no longer accepted".to_owned();
            Err(ServeError::Listener { what: "HTTP", reason })
        }
    }

    /// Waits for the model and opens for work.
    async fn begin(
        &self,
        loaded: oneshot::Receiver<Result<Ready, LoadError>>,
    ) -> Result<TeacherFacts, ServeError> {
        let loaded = loaded.await.map_err(|_| ServeError::LoadPanicked)?;
        let Ready { facts, text } = loaded.map_err(ServeError::Load)?;
        let facts = self.settings.resolve(&facts)?;
        let serving = Serving { facts: facts.clone(), text };
        self.state.send_replace(State::Serving(Arc::new(serving)));
        self.metrics.serving.set(1);
        self.report(ServingStatus::Serving).await;
        Ok(facts)
    }

    /// Finishes what was admitted and closes everything, within the drain timeout; gives the end of that.
    async fn drain(self, servers: &mut Servers) -> Instant {
        let deadline = Instant::now() + self.settings.limits.drain_timeout;
        self.state.send_replace(State::Draining);
        self.metrics.serving.set(0);
        self.report(ServingStatus::NotServing).await;
        // The ports stay open meanwhile: whoever asks now is told, not left in the dark.
        if !self.calls.all_done(self.settings.limits.drain_timeout).await {
            tracing::warn!("work is left at the end of the drain timeout; cutting it off");
        }
        // The HTTP server never ends by itself; the gRPC server does once its clients have left.
        drop(self.leave);
        let leave = deadline.min(Instant::now() + LEAVE_TIME);
        let _ = timeout_at(leave, servers.join_next()).await;
        self.cut.draw();
        deadline
    }

    async fn report(&self, status: ServingStatus) {
        self.health.set_service_status("", status).await;
        self.health.set_service_status(TeacherServer::<TeacherService>::NAME, status).await;
    }
}

/// The thread that owns the model. However it is let go of, it must not go on for nobody.
struct DeviceThread {
    engine: Engine,
    ended: oneshot::Receiver<Infallible>,
}

impl DeviceThread {
    /// Waits until the deadline for its last batch, and for what the model does when it goes.
    async fn end(mut self, deadline: Instant) {
        self.engine.abort();
        if timeout_at(deadline, &mut self.ended).await.is_err() {
            tracing::warn!("the device is still at work at the end of the drain timeout");
        }
    }
}

impl Drop for DeviceThread {
    fn drop(&mut self) {
        self.engine.abort();
    }
}

fn listener_ended(
    ended: Option<Result<Result<(), ServeError>, tokio::task::JoinError>>,
) -> ServeError {
    let reason = match ended {
        Some(Ok(Err(error))) => return error,
        Some(Ok(Ok(()))) | None => "its listener closed".to_owned(),
        Some(Err(error)) => error.to_string(),
    };
    ServeError::Listener { what: "a port", reason }
}
