//! The teacher server's program: flags, logging, signals; the service is in the library.

use std::process::ExitCode;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use teacher_server::calibrate::{calibrate, table};
use teacher_server::config::{CalibrateArgs, Cli, Command, HealthArgs, ServeArgs};
use teacher_server::decoder::Calibrating;
use teacher_server::qwen3_scorer::{Batches, ModelSource};
use teacher_server::telemetry::{self, TelemetryError};
use teacher_server::{Guard, Listeners, ServeError, banner, health, output, serve, shutdown};

/// Longest time for the last spans to be sent when the server ends.
const LAST_SPANS: Duration = Duration::from_secs(5);
/// Exit status for flags that cannot be followed; clap uses the same.
const BAD_USAGE: u8 = 2;

fn main() -> ExitCode {
    model::malloc::tune();
    let cli = Cli::read(std::env::args_os()).unwrap_or_else(|error| error.exit());
    let names: Vec<_> =
        std::env::vars_os().filter_map(|(name, _)| name.into_string().ok()).collect();
    if let Err(error) = Cli::check_variables(names.iter().map(String::as_str)) {
        error.exit();
    }
    match cli.command {
        Command::Health(args) => end(probe(&args)),
        Command::Calibrate(args) => end(make_code(*args)),
        Command::Serve(args) => match usable(&args) {
            Ok(guard) => end(run(*args, guard)),
            Err(error) => {
                output::complain(&format!("error: {error}"));
                ExitCode::from(BAD_USAGE)
            }
        },
    }
}

/// Refuses flags that cannot be followed, before anything is loaded.
fn usable(args: &ServeArgs) -> anyhow::Result<Guard> {
    args.check_exposure()?;
    args.check_profile()?;
    Ok(args.guard()?)
}

fn end(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::complain(&format!("error: {error:#}"));
            let settings = matches!(error.downcast_ref(), Some(ServeError::Settings(_)));
            match settings || error.is::<TelemetryError>() {
                true => ExitCode::from(BAD_USAGE),
                false => ExitCode::FAILURE,
            }
        }
    }
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    // The network needs little; the processors are the model's.
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(2).enable_all().build().context("starting the network's threads")
}

fn run(args: ServeArgs, guard: Guard) -> anyhow::Result<()> {
    threads(args.threads)?;
    let runtime = runtime()?;
    let telemetry = {
        let _runtime = runtime.enter();
        telemetry::start(args.otlp_endpoint.as_deref())?
    };
    let (drain, told) = (Duration::from_secs(args.bounds.drain_timeout.into()), OnceLock::new());
    let result = runtime.block_on(serve_model(args, guard, &told));
    // What is left of the time for the drain.
    let left = told.get().map_or(drain, |told: &Instant| drain.saturating_sub(told.elapsed()));
    telemetry.end(left.min(LAST_SPANS));
    // Connections that were cut, and the device in the middle of a batch, are not waited for.
    runtime.shutdown_background();
    result
}

/// Serves; `told_at` gets the time when the server was told to stop.
async fn serve_model(
    args: ServeArgs,
    guard: Guard,
    told_at: &OnceLock<Instant>,
) -> anyhow::Result<()> {
    let began = Instant::now();
    let told = shutdown::signals().context("listening for signals")?;
    let stop = async move {
        tokio::select! {
            () = told => {}
            () = shutdown::stdin_ends(), if args.until_stdin_ends => {}
        }
        told_at.get_or_init(Instant::now);
    };
    let listeners = Listeners::bind(args.listen, args.http_listen).await?;
    let (grpc, http) = (listeners.grpc.local_addr()?, listeners.http.local_addr()?);
    if args.insecure_allow_remote && guard.tls.is_none() {
        tracing::warn!("plaintext (--insecure-allow-remote): for networks you trust only");
    }
    let remote = [args.listen, args.http_listen].iter().any(|at| !at.ip().is_loopback());
    if remote && guard.access.is_open() {
        tracing::warn!("nobody is asked who calls: give --auth-tokens or --tls-client-ca");
    }
    if remote && guard.tls.is_none() && args.auth_tokens.is_some() {
        tracing::warn!("without --tls-cert everybody on the way can read the clients' tokens");
    }
    shutdown::on_hangup({
        let guard = guard.clone();
        move || guard.reload()
    })
    .context("listening for SIGHUP")?;
    let source = ModelSource {
        model: args.model,
        revision: args.revision,
        device: args.device,
        dtype: args.dtype,
        calibrating: Calibrating { dir: args.kept.dir().ok(), auto: args.auto_calibration },
        batches: Some(Batches {
            tokens: args.bounds.max_batch_tokens as usize,
            k: args.bounds.max_top_k as usize,
            profile: args.profile.map(|path| (path, args.profile_batches)),
        }),
    };
    let ready = |facts: &_| {
        banner::log(facts, began.elapsed());
        output::line(&format!("listening grpc={grpc} http={http}"));
    };
    let settings = (&args.bounds).into();
    serve(listeners, move || source.load(), settings, guard, ready, stop).await?;
    Ok(())
}

fn make_code(args: CalibrateArgs) -> anyhow::Result<()> {
    threads(args.threads)?;
    let runtime = runtime()?;
    let telemetry = {
        let _runtime = runtime.enter();
        telemetry::start(None)?
    };
    let dir = args.kept.dir()?;
    let CalibrateArgs { model, revision, device, dtype, .. } = args;
    let calibrating = Calibrating::default();
    let source = ModelSource { model, revision, device, dtype, calibrating, batches: None };
    let made = calibrate(source, &args.data, args.tokens.map(|tokens| tokens as usize), &dir)?;
    if let Some(before) = &made.before {
        tracing::warn!(
            "what was kept until now is {}: caches and checkpoints of coded hidden states that began with it \
             need it, and go on when it is put back in place of the new one",
            before.display()
        );
    }
    output::line(&table(&made.rates));
    output::line(&format!("calibration of {} tokens: {}", made.tokens, made.path.display()));
    telemetry.end(LAST_SPANS);
    Ok(())
}

/// Starts so many threads for computing, where a number was given.
fn threads(number: Option<u32>) -> anyhow::Result<()> {
    let Some(number) = number else { return Ok(()) };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(number as usize);
    pool.build_global().context("starting the threads for computing")
}

fn probe(args: &HealthArgs) -> anyhow::Result<()> {
    let patience = Duration::from_secs(args.timeout);
    let tls = match &args.tls_ca {
        None => None,
        Some(path) => {
            let authority = std::fs::read_to_string(path)
                .with_context(|| format!("--tls-ca {}", path.display()))?;
            Some(health::ProbeTls { authority, name: args.tls_name.clone() })
        }
    };
    runtime()?.block_on(health::probe(&args.addr, tls, patience))?;
    output::line("SERVING");
    Ok(())
}
