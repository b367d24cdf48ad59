//! The command line: what may be written, and what it means.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

use crate::settings::Settings;

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
    /// Asks a running server for its health: status 0 when it serves, 1 otherwise.
    Health(HealthArgs),
}

/// Flags of `serve`. Each can be set by an environment variable too.
#[derive(Clone, Debug, Args)]
pub struct ServeArgs {
    /// Hub id (`Qwen/Qwen3-4B`) or local directory in Hugging Face form.
    #[arg(long, value_name = "MODEL", env = "TEACHER_SERVER_MODEL")]
    pub model: String,
    /// Branch, tag or commit on the hub [default: main].
    #[arg(long, value_name = "REV", env = "TEACHER_SERVER_REVISION")]
    pub revision: Option<String>,
    /// Address for gRPC; port 0 takes a free one.
    #[arg(long, value_name = "HOST:PORT", env = "TEACHER_SERVER_LISTEN")]
    #[arg(default_value = "127.0.0.1:50051")]
    pub listen: SocketAddr,
    /// Address for `/metrics` and `/health`; port 0 takes a free one.
    #[arg(long, value_name = "HOST:PORT", env = "TEACHER_SERVER_HTTP_LISTEN")]
    #[arg(default_value = "127.0.0.1:9464")]
    pub http_listen: SocketAddr,
    /// Serve on addresses other machines reach, without encryption and without asking who calls.
    /// For private networks only.
    #[arg(long, env = "TEACHER_SERVER_INSECURE_ALLOW_REMOTE")]
    pub insecure_allow_remote: bool,
    /// `auto`, `cpu` or `cuda:N`.
    #[arg(long, value_name = "DEVICE", env = "TEACHER_SERVER_DEVICE", default_value = "auto")]
    #[arg(value_parser = device)]
    pub device: String,
    /// Arithmetic of the matrix products; `auto` is f32 on a CPU and bf16 on a GPU.
    #[arg(long, env = "TEACHER_SERVER_DTYPE", default_value = "auto")]
    pub dtype: Dtype,
    /// Threads for computing [default: one a processor].
    #[arg(long, value_name = "N", env = "TEACHER_SERVER_THREADS", value_parser = at_least_1)]
    pub threads: Option<u32>,
    /// Stop, as on SIGTERM, when standard input ends: for a program that holds the other end of a
    /// pipe, and whose server must not outlive it.
    #[arg(long, env = "TEACHER_SERVER_UNTIL_STDIN_ENDS", hide = true)]
    pub until_stdin_ends: bool,
    /// The bounds.
    #[command(flatten)]
    pub bounds: BoundArgs,
}

/// The server's bounds; `GetInfo` tells them to clients.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Bounds")]
pub struct BoundArgs {
    /// Longest sequence, in tokens [default: what the model's positions allow].
    #[arg(long, value_name = "N", env = "TEACHER_SERVER_MAX_SEQUENCE_TOKENS")]
    #[arg(value_parser = at_least_1)]
    pub max_sequence_tokens: Option<u32>,
    /// Tokens computed at once; a longer sequence is computed alone.
    #[arg(long, value_name = "N", env = "TEACHER_SERVER_MAX_BATCH_TOKENS")]
    #[arg(default_value_t = Settings::DEFAULT.max_batch_tokens, value_parser = at_least_1)]
    pub max_batch_tokens: u32,
    /// Largest k of a top-k signal.
    #[arg(long, value_name = "K", env = "TEACHER_SERVER_MAX_TOP_K")]
    #[arg(default_value_t = Settings::DEFAULT.max_top_k, value_parser = at_least_1)]
    pub max_top_k: u32,
    /// Sequences that may wait for the device, over all clients.
    #[arg(long, value_name = "N", env = "TEACHER_SERVER_MAX_QUEUED_SEQUENCES")]
    #[arg(default_value_t = Settings::DEFAULT.max_queued_sequences, value_parser = at_least_1)]
    pub max_queued_sequences: u32,
    /// Tokens that may wait for the device, over all clients.
    #[arg(long, value_name = "N", env = "TEACHER_SERVER_MAX_QUEUED_TOKENS")]
    #[arg(default_value_t = Settings::DEFAULT.max_queued_tokens, value_parser = at_least_1)]
    pub max_queued_tokens: u32,
    /// Unanswered requests of one stream before the server stops reading it.
    #[arg(long, value_name = "N", env = "TEACHER_SERVER_MAX_IN_FLIGHT_PER_STREAM")]
    #[arg(default_value_t = Settings::DEFAULT.max_in_flight_per_stream, value_parser = at_least_1)]
    pub max_in_flight_per_stream: u32,
    /// Largest reply message, in bytes; `KiB` and `MiB` are understood.
    #[arg(long, value_name = "BYTES", env = "TEACHER_SERVER_MAX_REPLY_BYTES")]
    #[arg(default_value_t = Settings::DEFAULT.max_reply_bytes, value_parser = bytes)]
    pub max_reply_bytes: u32,
    /// Largest request message, in bytes; `KiB` and `MiB` are understood.
    #[arg(long, value_name = "BYTES", env = "TEACHER_SERVER_MAX_REQUEST_BYTES")]
    #[arg(default_value_t = Settings::DEFAULT.max_request_bytes, value_parser = bytes)]
    pub max_request_bytes: u32,
    /// Longest text of `ScoreText`, in bytes [default: 16 for each token of the longest sequence, as
    /// far as a request has room].
    #[arg(long, value_name = "BYTES", env = "TEACHER_SERVER_MAX_TEXT_BYTES", value_parser = bytes)]
    pub max_text_bytes: Option<u32>,
    /// Connections open at a time, on each of the two ports.
    #[arg(long, value_name = "N", env = "TEACHER_SERVER_MAX_CONNECTIONS")]
    #[arg(default_value_t = Settings::DEFAULT.max_connections, value_parser = at_least_1)]
    pub max_connections: u32,
    /// Seconds a connection may be open without a call on it, an open stream being one; the HTTP
    /// port allows at most 20.
    #[arg(long, value_name = "SECONDS", env = "TEACHER_SERVER_IDLE_TIMEOUT")]
    #[arg(default_value_t = Settings::DEFAULT.idle_timeout.as_secs() as u32)]
    #[arg(value_parser = at_least_1)]
    pub idle_timeout: u32,
    /// Seconds after SIGTERM in which admitted work may finish; then the process ends.
    #[arg(long, value_name = "SECONDS", env = "TEACHER_SERVER_DRAIN_TIMEOUT")]
    #[arg(default_value_t = Settings::DEFAULT.drain_timeout.as_secs())]
    pub drain_timeout: u64,
}

/// Flags of `health`.
#[derive(Clone, Debug, Args)]
pub struct HealthArgs {
    /// The server's gRPC address.
    #[arg(long, value_name = "HOST:PORT", env = "TEACHER_SERVER_HEALTH_ADDR")]
    #[arg(default_value = "127.0.0.1:50051")]
    pub addr: String,
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

/// Why the flags, each fine by itself, cannot be followed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{flag} {address} is reachable by other machines, and this server neither encrypts nor asks \
     who calls; listen on 127.0.0.1, or say --insecure-allow-remote on a network you trust"
)]
pub struct ExposedError {
    flag: &'static str,
    address: SocketAddr,
}

impl Cli {
    /// Reads arguments as the program gets them, the program's name first. `serve` is put in where
    /// no command is named, so that `teacher-server --model M` works.
    ///
    /// # Errors
    /// What clap has to say; its `exit` prints it and ends with status 2 (0 for `--help`).
    pub fn read(args: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let mut args: Vec<OsString> = args.into_iter().collect();
        let named = ["serve", "health", "--version", "-V"];
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
    /// Refuses plaintext addresses other machines reach unless that was asked for by name.
    ///
    /// # Errors
    /// The flag and the address.
    pub fn check_exposure(&self) -> Result<(), ExposedError> {
        if self.insecure_allow_remote {
            return Ok(());
        }
        let addresses = [("--listen", self.listen), ("--http-listen", self.http_listen)];
        match addresses.into_iter().find(|(_, address)| !address.ip().is_loopback()) {
            Some((flag, address)) => Err(ExposedError { flag, address }),
            None => Ok(()),
        }
    }
}

impl From<&BoundArgs> for Settings {
    fn from(args: &BoundArgs) -> Self {
        Self {
            max_sequence_tokens: args.max_sequence_tokens,
            max_batch_tokens: args.max_batch_tokens,
            max_top_k: args.max_top_k,
            max_queued_sequences: args.max_queued_sequences,
            max_queued_tokens: args.max_queued_tokens,
            max_in_flight_per_stream: args.max_in_flight_per_stream,
            max_reply_bytes: args.max_reply_bytes,
            max_request_bytes: args.max_request_bytes,
            max_text_bytes: args.max_text_bytes,
            max_connections: args.max_connections,
            idle_timeout: Duration::from_secs(args.idle_timeout.into()),
            drain_timeout: Duration::from_secs(args.drain_timeout),
        }
    }
}

fn at_least_1(text: &str) -> Result<u32, String> {
    match text.parse::<u32>() {
        Ok(0) => Err("must be at least 1".into()),
        Ok(n) => Ok(n),
        Err(_) => Err(format!("must be a whole number from 1 to {}", u32::MAX)),
    }
}

/// The name of a device this build can compute on.
fn device(name: &str) -> Result<String, String> {
    model::device::choose(name).map(|_| name.to_owned()).map_err(|error| error.to_string())
}

fn bytes(text: &str) -> Result<u32, String> {
    let (number, unit) = [("KiB", 10), ("MiB", 20)]
        .into_iter()
        .find_map(|(suffix, shift)| Some((text.strip_suffix(suffix)?.trim_end(), 1u32 << shift)))
        .unwrap_or((text, 1));
    let number = number.parse::<u32>().ok().and_then(|n| n.checked_mul(unit)).filter(|&n| n > 0);
    number.ok_or_else(|| "must be a number of bytes, as 1048576, 1024KiB or 1MiB".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Cli, clap::Error> {
        Cli::read(line.split(' ').map(OsString::from))
    }

    fn serve(line: &str) -> ServeArgs {
        match read(line).unwrap().command {
            Command::Serve(args) => *args,
            Command::Health(_) => panic!("{line} is no serve command"),
        }
    }

    #[test]
    fn serving_needs_no_command_and_the_defaults_are_the_contract() {
        for line in ["teacher-server --model m", "teacher-server serve --model m"] {
            let args = serve(line);
            assert_eq!(args.model, "m");
            assert_eq!(args.listen.to_string(), "127.0.0.1:50051");
            assert_eq!(args.http_listen.to_string(), "127.0.0.1:9464");
            assert_eq!((args.device.as_str(), args.dtype), ("auto", Dtype::Auto));
            assert_eq!(Settings::from(&args.bounds), Settings::DEFAULT);
        }
        assert!(matches!(read("teacher-server health").unwrap().command, Command::Health(_)));
    }

    #[test]
    fn the_flags_of_serve_are_frozen() {
        let mut cli = Cli::command();
        cli.build();
        let serve = cli.find_subcommand("serve").unwrap();
        let flags: Vec<&str> = serve.get_arguments().filter_map(|arg| arg.get_long()).collect();
        assert_eq!(
            flags.join(" "),
            "model revision listen http-listen insecure-allow-remote device dtype threads \
             until-stdin-ends \
             max-sequence-tokens max-batch-tokens max-top-k max-queued-sequences \
             max-queued-tokens max-in-flight-per-stream max-reply-bytes max-request-bytes \
             max-text-bytes max-connections idle-timeout drain-timeout help"
        );
        for argument in serve.get_arguments().filter(|arg| arg.get_id() != "help") {
            let flag = argument.get_long().unwrap();
            let wanted = format!("TEACHER_SERVER_{}", flag.replace('-', "_").to_uppercase());
            let variable = argument.get_env().and_then(|env| env.to_str());
            assert_eq!(variable, Some(wanted.as_str()), "--{flag}");
        }
    }

    #[test]
    fn a_misspelt_variable_is_a_usage_error_that_names_the_nearest() {
        let known = [
            "TEACHER_SERVER_DTYPE",
            "TEACHER_SERVER_MAX_TOP_K",
            "TEACHER_SERVER_HEALTH_ADDR",
            "TEACHER_SERVER_SERVICE_HOST",
            "TEACHER_SERVER_PORT_50051_TCP",
            "TEACHER_SERVERS",
            "HOME",
        ];
        Cli::check_variables(known).unwrap();
        let error = Cli::check_variables(["PATH", "TEACHER_SERVER_MAX_TOPK"]).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("TEACHER_SERVER_MAX_TOPK; the nearest is TEACHER_SERVER_MAX_TOP_K"));
        assert_eq!(error.exit_code(), 2);
    }

    #[test]
    fn bad_values_are_usage_errors() {
        for line in [
            "teacher-server",
            "teacher-server --model m --max-top-k 0",
            "teacher-server --model m --max-batch-tokens -1",
            "teacher-server --model m --listen nowhere",
            "teacher-server --model m --dtype int8",
            "teacher-server --model m --device gpu",
            "teacher-server --model m --device cuda:0",
            "teacher-server --model m --max-reply-bytes 4096MiB",
            "teacher-server --model m --no-such-flag",
            "teacher-server health --timeout soon",
        ] {
            assert_eq!(read(line).unwrap_err().exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn sizes_may_carry_a_unit() {
        let line = "teacher-server --model m --max-reply-bytes 512KiB --max-request-bytes 8MiB";
        let bounds = serve(line).bounds;
        assert_eq!((bounds.max_reply_bytes, bounds.max_request_bytes), (524_288, 8_388_608));
    }

    #[test]
    fn addresses_others_reach_need_the_flag_that_says_so() {
        let open = "teacher-server --model m --listen 0.0.0.0:50051";
        let refused = serve(open).check_exposure().unwrap_err().to_string();
        assert!(refused.contains("--listen 0.0.0.0:50051"), "{refused}");
        assert!(refused.contains("--insecure-allow-remote"), "{refused}");
        let allowed = format!("{open} --insecure-allow-remote");
        assert_eq!(serve(&allowed).check_exposure(), Ok(()));
        let http = "teacher-server --model m --listen [::1]:1 --http-listen 10.0.0.1:2";
        let refused = serve(http).check_exposure().unwrap_err().to_string();
        assert!(refused.contains("--http-listen 10.0.0.1:2"), "{refused}");
    }
}
