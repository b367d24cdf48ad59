//! The command line: what may be written, and what it means.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use hub::settings::own_cache;
use model::profile::{self, PlaceError, Turns};

mod bounds;

pub use bounds::BoundArgs;

use crate::Guard;
use crate::access::{Access, TokensError};
use crate::telemetry;
use crate::tls::{Tls, TlsError, TlsFiles};
use bounds::at_least_1;

/// The teacher: a gRPC service that scores token sequences for a student to learn from.
#[derive(Clone, Debug, Parser)]
#[command(name = "teacher-server", version, about, disable_help_subcommand = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What the program does.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Serves a model. This is what happens when no command is named.
    #[command(after_help = "`teacher-server health --help` describes the probe for containers.")]
    Serve(Box<ServeArgs>),
    /// Makes the code of the model's hidden states from text like that which will be taught, keeps it
    /// under the model's fingerprint, and shows what its steps take and cost.
    Calibrate(Box<CalibrateArgs>),
    /// Asks a running server for its health: status 0 when it serves, 1 otherwise.
    Health(HealthArgs),
}

/// Flags of `serve`. Each can be set by an environment variable too.
#[derive(Clone, Debug, Args)]
pub struct ServeArgs {
    /// Hub id (`Qwen/Qwen3-4B`), local directory in Hugging Face form, or GGUF file with config.json and
    /// tokenizer.json beside it.
    #[arg(long, value_name = "MODEL", env = "TEACHER_SERVER_MODEL")]
    pub model: String,
    /// Branch, tag or commit on the hub [default: main].
    #[arg(long, value_name = "REV", env = "TEACHER_SERVER_REVISION")]
    pub revision: Option<String>,
    /// Address for gRPC; port 0 takes a free one.
    #[arg(long, value_name = "IP:PORT", env = "TEACHER_SERVER_LISTEN")]
    #[arg(default_value = "127.0.0.1:50051", value_parser = address)]
    pub listen: SocketAddr,
    /// Address for `/metrics`, `/health` and the trainers that speak HTTP (TRL's, vLLM's clients); port 0
    /// takes a free one.
    #[arg(long, value_name = "IP:PORT", env = "TEACHER_SERVER_HTTP_LISTEN")]
    #[arg(default_value = "127.0.0.1:9464", value_parser = address)]
    pub http_listen: SocketAddr,
    /// PEM file with the server's certificate: both ports are encrypted. Read again on SIGHUP.
    #[arg(long, value_name = "FILE", env = "TEACHER_SERVER_TLS_CERT", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// PEM file with the certificate's private key.
    #[arg(long, value_name = "FILE", env = "TEACHER_SERVER_TLS_KEY", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// PEM file with the authority clients' certificates must come from (mutual TLS); health asks
    /// for none.
    #[arg(long, value_name = "FILE", env = "TEACHER_SERVER_TLS_CLIENT_CA", requires = "tls_cert")]
    pub tls_client_ca: Option<PathBuf>,
    /// File with the bearer tokens clients must send, one a line: TOKEN or NAME TOKEN; health asks
    /// for none. Read again on SIGHUP.
    #[arg(long, value_name = "FILE", env = "TEACHER_SERVER_AUTH_TOKENS")]
    pub auth_tokens: Option<PathBuf>,
    /// Serve in plaintext on addresses other machines reach. For private networks only.
    #[arg(long, env = "TEACHER_SERVER_INSECURE_ALLOW_REMOTE")]
    pub insecure_allow_remote: bool,
    /// `auto`, `cpu` or `cuda:N`.
    #[arg(long, value_name = "DEVICE", env = "TEACHER_SERVER_DEVICE", default_value = "auto")]
    #[arg(value_parser = device)]
    pub device: String,
    /// Arithmetic of the matrix products; `auto` is f32 on a CPU and bf16 on a GPU; f16 on a CPU alone.
    #[arg(long, env = "TEACHER_SERVER_DTYPE", default_value = "auto")]
    pub dtype: Dtype,
    /// Threads for computing [default: one a processor].
    #[arg(long, value_name = "N", env = "TEACHER_SERVER_THREADS", value_parser = at_least_1)]
    pub threads: Option<u32>,
    /// Write a Chrome trace of some batches (chrome://tracing, Perfetto): each batch and what lies between,
    /// and on a card every kernel. These batches are slower. FILE is new, or an older trace.
    #[arg(long, value_name = "FILE", env = "TEACHER_SERVER_PROFILE")]
    pub profile: Option<PathBuf>,
    /// The batches that --profile looks at, the first one of a client being number 1.
    #[arg(long, value_name = "FIRST..LAST", env = "TEACHER_SERVER_PROFILE_BATCHES")]
    #[arg(default_value = "3..8", requires = "profile")]
    pub profile_batches: Turns,
    /// Export a span of every call to this OpenTelemetry collector, by OTLP over gRPC. Without the
    /// flag OTEL_EXPORTER_OTLP_ENDPOINT says where. For builds with the feature `otel`.
    #[arg(long, value_name = "URL", env = "TEACHER_SERVER_OTLP_ENDPOINT")]
    #[arg(value_parser = telemetry::endpoint)]
    pub otlp_endpoint: Option<String>,
    /// Stop, as on SIGTERM, when standard input ends: for a program that holds the other end of a
    /// pipe, and whose server must not outlive it.
    #[arg(long, env = "TEACHER_SERVER_UNTIL_STDIN_ENDS", hide = true)]
    pub until_stdin_ends: bool,
    /// The bounds.
    #[command(flatten)]
    pub bounds: BoundArgs,
    /// Where codes of hidden states are kept.
    #[command(flatten)]
    pub kept: CalibrationDir,
    /// What a code of hidden states is made of where none is kept.
    #[arg(long, env = "TEACHER_SERVER_AUTO_CALIBRATION", default_value = "traffic")]
    pub auto_calibration: AutoCalibration,
}

/// Flags of `calibrate`.
#[derive(Clone, Debug, Args)]
pub struct CalibrateArgs {
    /// Hub id (`Qwen/Qwen3-4B`), local directory in Hugging Face form, or GGUF file with config.json and
    /// tokenizer.json beside it.
    #[arg(long, value_name = "MODEL", env = "TEACHER_SERVER_MODEL")]
    pub model: String,
    /// Branch, tag or commit on the hub [default: main].
    #[arg(long, value_name = "REV", env = "TEACHER_SERVER_REVISION")]
    pub revision: Option<String>,
    /// Text: a .jsonl file, of whose rows all strings are taken, or a file that is text.
    #[arg(long, value_name = "FILE", env = "TEACHER_SERVER_CALIBRATION_DATA")]
    pub data: PathBuf,
    /// Tokens of the text that are used at most; at least two for each number of a hidden state
    /// [default: 8192, of hidden states wider than 3,840 numbers as many as that takes].
    #[arg(long, value_name = "N", env = "TEACHER_SERVER_CALIBRATION_TOKENS")]
    #[arg(value_parser = at_least_1)]
    pub tokens: Option<u32>,
    /// Where codes are kept.
    #[command(flatten)]
    pub kept: CalibrationDir,
    /// `auto`, `cpu` or `cuda:N`.
    #[arg(long, value_name = "DEVICE", env = "TEACHER_SERVER_DEVICE", default_value = "auto")]
    #[arg(value_parser = device)]
    pub device: String,
    /// Arithmetic of the matrix products; `auto` is f32 on a CPU and bf16 on a GPU; f16 on a CPU alone.
    #[arg(long, env = "TEACHER_SERVER_DTYPE", default_value = "auto")]
    pub dtype: Dtype,
    /// Threads for computing [default: one a processor].
    #[arg(long, value_name = "N", env = "TEACHER_SERVER_THREADS", value_parser = at_least_1)]
    pub threads: Option<u32>,
}

/// Where the codes of hidden states are kept.
#[derive(Clone, Debug, Args)]
pub struct CalibrationDir {
    /// Directory for calibrations [default: limbeck/calibration in $XDG_CACHE_HOME or ~/.cache].
    #[arg(long, value_name = "DIR", env = "TEACHER_SERVER_CALIBRATION_DIR")]
    pub calibration_dir: Option<PathBuf>,
}

impl CalibrationDir {
    /// The directory for calibrations.
    ///
    /// # Errors
    /// When neither the flag nor the environment names one.
    pub fn dir(&self) -> Result<PathBuf, NoCacheDir> {
        let kept = || own_cache().map(|cache| cache.join("calibration"));
        self.calibration_dir.clone().or_else(kept).ok_or(NoCacheDir)
    }
}

/// There is no place for calibrations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("neither XDG_CACHE_HOME nor HOME is set: say with --calibration-dir where to keep it")]
pub struct NoCacheDir;

/// Flags of `health`.
#[derive(Clone, Debug, Args)]
pub struct HealthArgs {
    /// The server's gRPC address.
    #[arg(long, value_name = "HOST:PORT", env = "TEACHER_SERVER_HEALTH_ADDR")]
    #[arg(default_value = "127.0.0.1:50051")]
    pub addr: String,
    /// PEM file with the authority of the server's certificate: the server is asked over TLS.
    #[arg(long, value_name = "FILE", env = "TEACHER_SERVER_HEALTH_TLS_CA")]
    pub tls_ca: Option<PathBuf>,
    /// The name the certificate must carry, where it is not the address's host.
    #[arg(long, value_name = "NAME", env = "TEACHER_SERVER_HEALTH_TLS_NAME", requires = "tls_ca")]
    pub tls_name: Option<String>,
    /// Seconds to wait for the answer.
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    pub timeout: u64,
}

/// Arithmetic of the matrix products.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Dtype {
    /// What suits the device.
    Auto,
    /// 32-bit floats.
    F32,
    /// bfloat16 operands, 32-bit sums.
    Bf16,
    /// float16 operands, 32-bit sums.
    F16,
}

/// What a code of hidden states is made of, when a client asks for one and none is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum AutoCalibration {
    /// The first tokens that clients sent, with the text built in where these are too few.
    #[default]
    Traffic,
    /// The text built in: for teachers whose clients do not trust each other.
    BuiltIn,
    /// Nothing: only `teacher-server calibrate` makes codes.
    Off,
}

/// Why the flags, each fine by itself, cannot be followed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{flag} {address} is reachable by other machines, and what is said there is not encrypted; \
     give --tls-cert and --tls-key, listen on 127.0.0.1, or say --insecure-allow-remote on a network \
     you trust"
)]
pub struct ExposedError {
    flag: &'static str,
    address: SocketAddr,
}

/// Why callers cannot be told apart or the ports not be encrypted as the flags say.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// The tokens.
    #[error(transparent)]
    Tokens(#[from] TokensError),
    /// The certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

impl Cli {
    /// Reads arguments as the program gets them, the program's name first. `serve` is put in where
    /// no command is named, so that `teacher-server --model M` works.
    ///
    /// # Errors
    /// What clap has to say; its `exit` prints it and ends with status 2 (0 for `--help`).
    pub fn read(args: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let mut args: Vec<OsString> = args.into_iter().collect();
        let named = ["serve", "calibrate", "health", "--version", "-V"];
        let first = args.get(1).and_then(|a| a.to_str());
        if !first.is_some_and(|first| named.contains(&first)) {
            args.insert(1.min(args.len()), "serve".into());
        }
        Self::try_parse_from(args)
    }
}

/// What every environment variable of this program begins with.
const VARIABLE_PREFIX: &str = "TEACHER_SERVER_";

impl Cli {
    /// Refuses environment variables that carry this program's prefix and that no flag has. Those
    /// that Kubernetes sets for a service called teacher-server, which nobody wrote, are passed
    /// over.
    ///
    /// # Errors
    /// The first such name with the nearest one that exists, as a usage error.
    pub fn check_variables<'a>(
        names: impl IntoIterator<Item = &'a str>,
    ) -> Result<(), clap::Error> {
        let mut command = Self::command();
        let variables = |command: &clap::Command| -> Vec<String> {
            let named = command.get_arguments().filter_map(|argument| argument.get_env()?.to_str());
            named.map(str::to_owned).collect()
        };
        let known: Vec<String> = command.get_subcommands().flat_map(variables).collect();
        let of_a_service = |rest: &str| {
            ["SERVICE_HOST", "SERVICE_PORT", "PORT"].contains(&rest)
                || rest.starts_with("SERVICE_PORT_")
                || rest.starts_with("PORT_")
        };
        let unknown = |name: &&str| {
            name.strip_prefix(VARIABLE_PREFIX).is_some_and(|rest| !of_a_service(rest))
                && known.iter().all(|known| known != name)
        };
        let Some(name) = names.into_iter().find(unknown) else { return Ok(()) };
        let nearest = known.iter().min_by_key(|known| strsim::damerau_levenshtein(known, name));
        let advice = nearest.map_or(String::new(), |nearest| format!("; the nearest is {nearest}"));
        let text = format!("unknown environment variable {name}{advice}");
        Err(command.error(ErrorKind::UnknownArgument, text))
    }
}

impl ServeArgs {
    /// Who may call and how the ports are encrypted: the files are read.
    ///
    /// # Errors
    /// A file that cannot be used, by flag and name.
    pub fn guard(&self) -> Result<Guard, GuardError> {
        let access = Access::new(self.auth_tokens.as_deref(), self.tls_client_ca.is_some())?;
        let files = self.tls_cert.clone().zip(self.tls_key.clone());
        let tls = files.map(|(cert, key)| {
            Tls::new(TlsFiles { cert, key, client_ca: self.tls_client_ca.clone() })
        });
        Ok(Guard { access, tls: tls.transpose()? })
    }

    /// Refuses a place for the profile where it would destroy something, or cannot be written.
    ///
    /// # Errors
    /// The place, and what is there.
    pub fn check_profile(&self) -> Result<(), PlaceError> {
        self.profile.as_deref().map_or(Ok(()), profile::check)
    }

    /// Refuses plaintext addresses other machines reach unless that was asked for by name.
    ///
    /// # Errors
    /// The flag and the address.
    pub fn check_exposure(&self) -> Result<(), ExposedError> {
        if self.insecure_allow_remote || self.tls_cert.is_some() {
            return Ok(());
        }
        let addresses = [("--listen", self.listen), ("--http-listen", self.http_listen)];
        match addresses.into_iter().find(|(_, address)| !address.ip().is_loopback()) {
            Some((flag, address)) => Err(ExposedError { flag, address }),
            None => Ok(()),
        }
    }
}

/// Where to listen.
fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        "wanted IP:PORT, as 127.0.0.1:50051, 0.0.0.0:50051 or [::1]:50051, with a port of at most 65535"
            .to_owned()
    })
}

/// The name of a device this build can compute on.
fn device(name: &str) -> Result<String, String> {
    model::device::check(name).map(|()| name.to_owned()).map_err(|error| error.to_string())
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
