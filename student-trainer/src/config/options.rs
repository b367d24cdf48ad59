//! Every option: its name, its default, what it means, and which commands know it.
//!
//! One name serves three places: the flag `--learning-rate`, the environment variable
//! `STUDENT_TRAINER_LEARNING_RATE` and the key `learning_rate` of the file given with `--config`.

use super::command::{Command, OptionSpec};

/// The options of a command, in the order help shows them.
pub fn options_of(command: Command) -> impl Iterator<Item = &'static OptionSpec> {
    OPTIONS.iter().filter(move |option| option.commands.contains(&command))
}

const TRAIN: &[Command] = &[Command::Train];
const EVAL: &[Command] = &[Command::Eval];
const DEMO: &[Command] = &[Command::Demo];
const PLAN: &[Command] = &[Command::Plan];
const TRAIN_PLAN: &[Command] = &[Command::Train, Command::Plan];
const BOTH: &[Command] = &[Command::Train, Command::Eval];
const BUILD: &[Command] = &[Command::CacheBuild];
const TRAIN_BUILD: &[Command] = &[Command::Train, Command::CacheBuild];
const ASKING: &[Command] = &[Command::Train, Command::Eval, Command::CacheBuild, Command::Signals];
const SIGNALS: &[Command] = &[Command::Signals];
const IMPORT: &[Command] = &[Command::CacheImport];
const OF_CACHE: &[Command] = &[
    Command::CacheBuild,
    Command::CacheVerify,
    Command::CacheInfo,
    Command::CacheExport,
    Command::CacheImport,
];

const MODELS: &str = "Models";
const DATA: &str = "Data";
const LOSS: &str = "Loss";
const COMPARISON: &str = "Comparison with the teacher";
const OPTIMISER: &str = "Optimiser";
const LENGTH: &str = "Length of the run";
const MACHINE: &str = "Machine";
const OUTPUT: &str = "Output";

/// Shorthand for one row of the table.
const fn option(
    group: &'static str,
    commands: &'static [Command],
    (name, value, default): (&'static str, &'static str, &'static str),
    help: &'static str,
) -> OptionSpec {
    let default = if default.is_empty() { None } else { Some(default) };
    OptionSpec { name, value, default, group, commands, help, switch: false }
}

/// Shorthand for an option that is off until it is named.
const fn switch(
    group: &'static str,
    commands: &'static [Command],
    name: &'static str,
    help: &'static str,
) -> OptionSpec {
    OptionSpec { switch: true, ..option(group, commands, (name, "true|false", "false"), help) }
}

/// The table. Names and defaults are promised to other people's scripts: add, never change. Where
/// an option means something else to another command, it has a row for each.
#[rustfmt::skip]
pub const OPTIONS: &[OptionSpec] = &[
    option(MODELS, TRAIN, ("teacher", "URL[,URL...]", ""),
        "Address of the teacher server, such as grpc://127.0.0.1:50051 (grpcs:// encrypts), or of a \
         vLLM server, vllm+http://127.0.0.1:8000 (vllm+https://), which knows no mass beyond top-k \
         at a temperature other than 1; needed unless --alpha is 0 or --cache has every answer. Several \
         are not offered yet"),
    option(MODELS, BUILD, ("teacher", "URL[,URL...]", ""),
        "Address of the teacher server whose answers are kept, such as grpc://127.0.0.1:50051 (or \
         vllm+http://127.0.0.1:8000)"),
    option(MODELS, EVAL, ("teacher", "URL[,URL...]", ""),
        "Address of a teacher server to compare the model with, such as grpc://127.0.0.1:50051 (or \
         vllm+http://127.0.0.1:8000); without one only the model's own perplexity is measured"),
    option(MODELS, SIGNALS, ("teacher", "URL", ""),
        "Address of the teacher server whose signals are measured, such as grpc://127.0.0.1:50051"),
    option(MODELS, ASKING, ("teacher-ca", "FILE", ""),
        "Certificates to trust, in PEM: of the authority that signed the teacher's, or the teacher's \
         own self-signed one; needed with grpcs://"),
    option(MODELS, ASKING, ("teacher-cert", "FILE", ""),
        "Certificate of this client, in PEM, for a teacher that asks for one; with --teacher-key"),
    option(MODELS, ASKING, ("teacher-key", "FILE", ""),
        "Private key of --teacher-cert, in PEM, not encrypted"),
    option(MODELS, ASKING, ("teacher-name", "NAME", ""),
        "Name the teacher's certificate must carry, where it is not the host of --teacher"),
    option(MODELS, ASKING, ("teacher-token-file", "FILE", ""),
        "File whose first line is the token the teacher wants of its clients; sent over encrypted \
         connections, and to this machine"),
    option(MODELS, ASKING, ("teacher-timeout", "SECONDS", "60"),
        "How long to try to reach a teacher that does not answer before giving up, in seconds"),
    option(MODELS, TRAIN_BUILD, ("teacher-window", "REQUESTS", "16"),
        "Rows asked of the teacher ahead of the step that needs them. Bounds memory; a larger one \
         hides a slow network"),
    option(MODELS, TRAIN, ("teacher-memory", "MIB", "1024"),
        "Memory for the teacher's answers, of training rows and of held-out rows each, so that later \
         epochs need not ask again: about 8 bytes a position and class of --top-k. 0 keeps none"),
    option(MODELS, BOTH, ("cache", "DIR|s3://...", ""),
        "Directory, or place in an object store, that keeps the teacher's answers: what is there is not \
         asked for, what comes is put there. A run whose rows are all there needs no --teacher"),
    option(MODELS, EVAL, ("teacher-window", "REQUESTS", "16"),
        "Rows asked of the teacher at a time; more of them hide a slow network"),
    option(MODELS, TRAIN, ("student", "MODEL", ""),
        "The model to train: a local directory in Hugging Face form or a hub id such as \
         Qwen/Qwen3-0.6B"),
    option(MODELS, PLAN, ("student", "MODEL", ""),
        "The model to train, as in training; its weights are not read"),
    option(MODELS, PLAN, ("student-revision", "REVISION", ""),
        "Branch, tag or commit of a hub student; the hub's main when absent"),
    option(MODELS, TRAIN_BUILD, ("student-revision", "REVISION", ""),
        "Branch, tag or commit of a hub student; the hub's main when absent"),
    option(MODELS, TRAIN, ("student-init", "pretrained|random", "pretrained"),
        "First weights: the model's files, or drawn at random from the seed (then only its \
         config.json and tokenizer are read)"),
    option(MODELS, SIGNALS, ("teacher-window", "REQUESTS", "16"),
        "Rows asked of the teacher at a time"),
    option(MODELS, SIGNALS, ("student", "MODEL", ""),
        "The student whose gradients are compared: a local directory or a hub id"),
    option(MODELS, SIGNALS, ("student-revision", "REVISION", ""),
        "Branch, tag or commit of a hub student; the hub's main when absent"),
    option(MODELS, BUILD, ("student", "MODEL", ""),
        "The model that will be trained, for its tokenizer and the size of its vocabulary: a local \
         directory in Hugging Face form or a hub id"),
    option(MODELS, IMPORT, ("student", "MODEL", ""),
        "The model whose tokenizer made the ids of a file that does not say so itself"),
    option(MODELS, IMPORT, ("teacher-model", "NAME", ""),
        "A name for the teacher whose answers a file holds that does not say so itself"),
    option(MODELS, EVAL, ("model", "MODEL", ""),
        "The model to measure: a local directory in Hugging Face form, a hub id, or a .gguf file with config.json, \
         tokenizer.json and, for questions and answers, the chat template beside it"),
    option(MODELS, EVAL, ("revision", "REVISION", ""),
        "Branch, tag or commit of a hub model; the hub's main when absent"),

    option(DATA, TRAIN, ("train-file", "FILES", ""),
        "Training rows: a .jsonl or .parquet path (also .gz, .zst), a glob, or \
         hf://datasets/ORG/NAME@REV/SPLIT"),
    option(DATA, TRAIN, ("eval-file", "FILES", ""),
        "Held-out rows, in the same forms; without them nothing is evaluated"),
    option(DATA, PLAN, ("train-file", "FILES", ""),
        "Training rows, whose longest make the largest batch; without them every row has --max-length tokens"),
    option(DATA, PLAN, ("max-train-samples", "ROWS", ""),
        "Take only the first ROWS training rows"),
    option(DATA, PLAN, ("max-length", "TOKENS", "1024"),
        "Longest row in tokens, as in training"),
    option(DATA, PLAN, ("loss-on", "completion|all", "completion"),
        "Which tokens are learned, as in training"),
    option(DATA, PLAN, ("chat-template", "auto|none|model", "auto"),
        "Put rows through the model's chat template, as in training"),
    option(DATA, EVAL, ("eval-file", "FILES", ""),
        "The rows to measure on: a .jsonl or .parquet path (also .gz, .zst), a glob, or \
         hf://datasets/ORG/NAME@REV/SPLIT"),
    option(DATA, BUILD, ("train-file", "FILES", ""),
        "Rows to ask about, in the same forms as in train"),
    option(DATA, BUILD, ("eval-file", "FILES", ""),
        "More rows to ask about: those of a run's --eval-file"),
    option(DATA, TRAIN_BUILD, ("max-train-samples", "ROWS", ""),
        "Take only the first ROWS training rows"),
    option(DATA, TRAIN_BUILD, ("max-eval-samples", "ROWS", ""),
        "Take only the first ROWS held-out rows"),
    option(DATA, EVAL, ("max-eval-samples", "ROWS", ""),
        "Measure on the first ROWS rows only"),
    option(DATA, SIGNALS, ("data", "FILES", ""),
        "Rows to measure on, in the forms of train-file"),
    option(DATA, SIGNALS, ("max-samples", "ROWS", "48"),
        "Measure on the first ROWS rows; a few thousand tokens are enough"),
    option(DATA, SIGNALS, ("loss-on", "completion|all", "completion"),
        "Which tokens are compared: the answer's only, or every token but the first"),
    option(DATA, ASKING, ("max-length", "TOKENS", "1024"),
        "Longest row in tokens; longer ones are cut there, counted and reported"),
    option(DATA, TRAIN_BUILD, ("loss-on", "completion|all", "completion"),
        "Which tokens are learned: the answer's only, or every token but the first. Of plain text \
         rows it is always the latter"),
    option(DATA, EVAL, ("loss-on", "completion|all", "completion"),
        "Which tokens are scored: the answer's only, or every token but the first. Of plain text \
         rows it is always the latter"),
    option(DATA, ASKING, ("chat-template", "auto|none|model", "auto"),
        "Put rows through the model's chat template. auto does so where rows are conversations"),
    option(DATA, TRAIN, ("shuffle", "true|false", "true"),
        "A new order of the rows each epoch, from the seed; false takes them in file order"),
    option(DATA, TRAIN, ("seed", "NUMBER", "42"),
        "Seed of all randomness: order of the rows and random first weights"),

    option(LOSS, TRAIN, ("alpha", "0..1", "0.7"),
        "Weight of the teacher: loss = alpha T^2 KL + (1 - alpha) CE. 0 is plain training \
         without a teacher"),
    option(LOSS, PLAN, ("alpha", "0..1", "0.7"),
        "Weight of the teacher; with 0 there is none"),
    option(LOSS, PLAN, ("signal", "top-k|candidates|sampled|full|coded", "top-k"),
        "What the teacher sends of each position, as in training"),
    option(LOSS, PLAN, ("top-k", "K", "64"),
        "Classes the teacher names per position, as in training"),
    option(LOSS, PLAN, ("draws", "N", "16"),
        "Of sampled: draws a position"),
    option(LOSS, PLAN, ("exact", "K", "0"),
        "Of sampled: the K likeliest classes exactly"),
    option(LOSS, PLAN, ("teacher-width", "N", ""),
        "Of coded and full: numbers of the teacher's hidden state (its hidden_size); the student's when absent"),
    option(LOSS, TRAIN, ("temperature", "T", "5.0"),
        "Softens both distributions before they are compared, 0.0001 to 1000000 (with --signal coded or \
         full to 1000). 1 compares them as they are"),
    option(LOSS, TRAIN_BUILD, ("signal", "top-k|candidates|sampled|full|coded", "top-k"),
        "What the teacher sends of each position: top-k, the likeliest classes and the mass of the rest; \
         candidates, beside these as many that the student holds likeliest, asked for at every step; \
         coded, the hidden state in a code (about 40 bytes a position for a width of 256, 200 for 1024), \
         and so all classes, any temperature and divergence; full, the hidden state itself; sampled, \
         draws (1 to 2 bytes each)"),
    option(LOSS, TRAIN_BUILD, ("signal-bytes", "BYTES", ""),
        "Of coded: the bytes a position may take; the finest step within them is chosen"),
    option(LOSS, TRAIN_BUILD, ("signal-error", "NATS", ""),
        "Of coded, instead: how far what is decoded may be from what the teacher says, as mean KL \
         divergence at temperature 1; the coarsest step within it is chosen. 0.01 when neither is given"),
    option(LOSS, TRAIN_BUILD, ("hidden-form", "f32|bf16|int8|int4", "bf16"),
        "Of full: 4, 2, 1 or half a byte a number of the hidden state"),
    option(LOSS, TRAIN_BUILD, ("draws", "N", "16"),
        "Of sampled: draws a position, 1 to 1024"),
    option(LOSS, TRAIN_BUILD, ("exact", "K", "0"),
        "Of sampled: the K likeliest classes exactly; draws are then from all the others"),
    option(LOSS, TRAIN_BUILD, ("decoder-dir", "DIR", ""),
        "Of coded and full: where the teacher's output matrix and code are kept, which are fetched once \
         [default: limbeck/decoder in $XDG_CACHE_HOME or ~/.cache]"),
    option(LOSS, TRAIN_BUILD, ("top-k", "K", "64"),
        "Of top-k: classes the teacher names per position; 5 bytes each with the codec packed. A teacher or student on a \
         card takes at most 2048"),
    option(LOSS, TRAIN_BUILD, ("codec", "packed|raw|compact|compact8", "packed"),
        "Layout of the teacher's answers: 340, 524, 254 or 190 bytes a position for the top 64 of \
         151936. raw is exact; in packed and compact a value is off by at most 1/131070 of its \
         position's range, in compact8 by 1/510. Above 16777216 classes always raw"),
    option(LOSS, TRAIN, ("tail", "bucket|renormalise", "bucket"),
        "What becomes of the classes outside the top k: one more outcome (exact), or dropped \
         (biased; for comparison)"),
    option(LOSS, TRAIN, ("divergence", "NAME", "forward-kl"),
        "forward-kl, KL(teacher || student); reverse-kl, KL(student || teacher); jsd, the generalised \
         Jensen-Shannon divergence of --beta; mixture, (1 - beta) forward + beta reverse. Of \
         listed classes and, as one more outcome, the rest; with --signal coded or full of all classes"),
    option(LOSS, TRAIN, ("beta", "0..1", "0.5"),
        "For --divergence jsd, beta KL(teacher || m) + (1 - beta) KL(student || m) with m = beta \
         teacher + (1 - beta) student, as in TRL: 0 is forward-kl, 1 reverse-kl; for mixture the \
         weight of reverse-kl"),
    option(LOSS, BUILD, ("temperature", "T", "5.0"),
        "Temperature of the answers: that of the runs to come, 0.0001 to 1000000"),
    option(LOSS, IMPORT, ("temperature", "T", "1.0"),
        "Temperature of the log-probabilities in a file that does not say so itself"),
    option(COMPARISON, EVAL, ("temperature", "T", "5.0"),
        "Softens both distributions before KL is taken, 0.0001 to 1000000. Perplexity and \
         agreement do not depend on it"),
    option(COMPARISON, EVAL, ("signal", "top-k|candidates|sampled|full|coded", "top-k"),
        "What the teacher sends of each position, as in training"),
    option(COMPARISON, EVAL, ("signal-bytes", "BYTES", ""),
        "Of coded: the bytes a position may take, as in training"),
    option(COMPARISON, EVAL, ("signal-error", "NATS", ""),
        "Of coded, instead: how far what is decoded may be off, as in training"),
    option(COMPARISON, EVAL, ("hidden-form", "f32|bf16|int8|int4", "bf16"),
        "Of full: the numbers of the hidden state, as in training"),
    option(COMPARISON, EVAL, ("draws", "N", "16"),
        "Of sampled: draws a position"),
    option(COMPARISON, EVAL, ("exact", "K", "0"),
        "Of sampled: the K likeliest classes exactly"),
    option(COMPARISON, EVAL, ("decoder-dir", "DIR", ""),
        "Of coded and full: where the teacher's output matrix and code are kept, as in training"),
    option(COMPARISON, EVAL, ("top-k", "K", "64"),
        "Classes the teacher names per position, for KL"),
    option(COMPARISON, EVAL, ("codec", "packed|raw|compact|compact8", "packed"),
        "Layout of the teacher's answers, as in training"),
    option(COMPARISON, EVAL, ("tail", "bucket|renormalise", "bucket"),
        "How KL takes the classes outside the top k: as one more outcome, or not at all"),
    option(COMPARISON, EVAL, ("divergence", "NAME", "forward-kl"),
        "The divergence that is reported: forward-kl, reverse-kl, jsd or mixture, as in training"),
    option(COMPARISON, EVAL, ("beta", "0..1", "0.5"),
        "Of --divergence jsd and mixture, as in training"),

    option(COMPARISON, SIGNALS, ("temperatures", "T[,T...]", "1,2,5"),
        "Temperatures to compare at"),
    option(COMPARISON, SIGNALS, ("budget", "BYTES", ""),
        "Recommend the best signal of at most BYTES a position; when absent the smallest whose \
         gradient is within 2 degrees of the full one"),
    option(COMPARISON, SIGNALS, ("decoder-dir", "DIR", ""),
        "Where the teacher's output matrix and code are kept, as in training"),

    option(OPTIMISER, TRAIN, ("learning-rate", "RATE", "5e-5"),
        "Peak learning rate of AdamW"),
    option(OPTIMISER, TRAIN, ("lr-scheduler-type", "NAME", "constant"),
        "constant, linear, cosine or constant_with_warmup; the formulas of transformers"),
    option(OPTIMISER, TRAIN, ("warmup-steps", "STEPS", "0"),
        "Steps over which the rate rises from 0 to its peak; with every scheduler but constant"),
    option(OPTIMISER, TRAIN, ("weight-decay", "RATE", "0.01"),
        "Decoupled weight decay"),
    option(OPTIMISER, TRAIN, ("adam-beta1", "0..1", "0.9"),
        "Decay of the first moment"),
    option(OPTIMISER, TRAIN, ("adam-beta2", "0..1", "0.999"),
        "Decay of the second moment"),
    option(OPTIMISER, TRAIN, ("adam-epsilon", "NUMBER", "1e-8"),
        "Added to the root of the second moment"),
    option(OPTIMISER, TRAIN, ("max-grad-norm", "NORM", "1.0"),
        "Gradients with a larger global norm are scaled down to it; inf never does"),

    option(LENGTH, TRAIN, ("num-train-epochs", "EPOCHS", "3"),
        "Passes over the training rows"),
    option(LENGTH, TRAIN, ("max-steps", "STEPS", ""),
        "Stop after STEPS optimiser steps instead, however many epochs that takes"),
    option(LENGTH, TRAIN_PLAN, ("per-device-train-batch-size", "ROWS", "4"),
        "Rows computed at once"),
    option(LENGTH, TRAIN_PLAN, ("gradient-accumulation-steps", "BATCHES", "1"),
        "Batches to one optimiser step; the loss is the mean over all their scored positions"),

    option(MACHINE, EVAL, ("per-device-train-batch-size", "ROWS", "4"),
        "Rows computed at once (named as in train, so that one --config serves both)"),
    option(MACHINE, SIGNALS, ("per-device-train-batch-size", "ROWS", "4"),
        "Rows computed at once"),
    option(MACHINE, SIGNALS, ("device", "auto|cpu|cuda:N", "auto"),
        "Where to compute, as in training"),
    option(MACHINE, BOTH, ("device", "auto|cpu|cuda:N", "auto"),
        "Where to compute; auto is the first card that can be used, and the CPU where there is none"),
    option(MACHINE, PLAN, ("device", "auto|cpu|cuda:N", "auto"),
        "The device to plan for, as in training; with --device-memory any card, whether it is here or not"),
    option(MACHINE, PLAN, ("device-memory", "BYTES", ""),
        "Memory of the device, as 24GiB or 80GB: nothing is asked of it then"),
    option(MACHINE, TRAIN_PLAN, ("dtype", "auto|f32|bf16|f16", "auto"),
        "Number type of the products' operands (auto: f32 on a CPU, bf16 on a GPU); sums, master \
         weights and moments are float32 always; f16 on the CPU alone"),
    option(MACHINE, TRAIN_PLAN, ("recompute", "auto|none|blocks|gradients", "auto"),
        "What a step computes again to save memory, the results being the same: blocks is the forward \
         pass (about 1.3 times as long), gradients also the backward pass (about 1.8 times, only on the CPU \
         and with --gradient-accumulation-steps 1). auto takes the first that fits into the free memory"),
    option(MACHINE, TRAIN_PLAN, ("on-memory", "split|refuse", "split"),
        "What becomes of a batch that does not fit into the device's memory: it is computed in parts, with the \
         same loss and gradient, or the run is refused before its first step"),
    option(MACHINE, EVAL, ("dtype", "auto|f32|bf16|f16", "auto"),
        "Number type of the products' operands (auto: f32 on a CPU, bf16 on a GPU); sums are \
         float32 always"),

    option(OUTPUT, TRAIN, ("output-dir", "DIR", ""),
        "Where the model, the metrics, the report and the checkpoints go"),
    switch(OUTPUT, TRAIN, "overwrite-output-dir",
        "Use an output directory that holds files already, and replace what an earlier run left \
         in it; other files stay"),
    option(OUTPUT, TRAIN, ("save-dtype", "f32|bf16", "f32"),
        "Number type of the saved weights"),
    option(OUTPUT, TRAIN, ("eval-steps", "STEPS", ""),
        "Evaluate every STEPS steps; at the end of each epoch when absent"),
    option(OUTPUT, TRAIN, ("save-steps", "STEPS", "500"),
        "Write a checkpoint every STEPS steps; 0 writes none"),
    option(OUTPUT, TRAIN, ("save-total-limit", "CHECKPOINTS", "3"),
        "Checkpoints kept; the oldest go first"),
    option(OUTPUT, TRAIN, ("resume-from-checkpoint", "auto|PATH", ""),
        "Go on from a checkpoint: auto takes the newest whole one in --output-dir. Off when \
         absent"),
    option(OUTPUT, TRAIN, ("logging-steps", "STEPS", "1"),
        "A line in metrics.jsonl and a point in TensorBoard every STEPS steps"),
    option(OUTPUT, TRAIN, ("profile", "FILE", ""),
        "Write a Chrome trace of some steps (chrome://tracing, Perfetto): waiting for the teacher, forward and \
         backward, optimiser, evaluation, checkpoint, and on a card every kernel; these steps are slower. FILE is \
         new, or an older trace, and outside --output-dir"),
    option(OUTPUT, TRAIN, ("profile-steps", "FIRST..LAST", "3..8"),
        "The steps that --profile looks at"),
    option(OUTPUT, TRAIN, ("progress", "auto|bar|plain|none", "auto"),
        "How to show the run; auto is a bar on a terminal and plain lines elsewhere"),
    option(OUTPUT, EVAL, ("progress", "auto|bar|plain|none", "auto"),
        "none says nothing on stderr of what is being done; the others say it in plain lines"),
    switch(OUTPUT, EVAL, "json",
        "Print the results as one JSON object"),

    switch(OUTPUT, PLAN, "json",
        "Print the plan as one JSON object"),

    option(OUTPUT, OF_CACHE, ("cache", "DIR|s3://...", ""),
        "The cache's directory, or its place in an object store: s3://, gs:// or az:// (settings as the AWS_..., \
         GOOGLE_... or AZURE_STORAGE_... variables say)"),
    option(OUTPUT, &[Command::CacheExport], ("parquet", "FILE", ""),
        "Parquet file to write: input_ids, teacher_topk_ids, teacher_topk_logprobs and more"),
    option(OUTPUT, IMPORT, ("parquet", "FILE", ""),
        "Parquet file to read: input_ids, teacher_topk_ids, teacher_topk_logprobs"),
    option(OUTPUT, BUILD, ("progress", "auto|bar|plain|none", "auto"),
        "none says nothing on stderr of what is being done; the others say it in plain lines"),
    switch(OUTPUT, &[Command::CacheInfo], "json",
        "Print the description as one JSON object"),

    option(OUTPUT, SIGNALS, ("output-dir", "DIR", "out/signals"),
        "Where signals.html and signals.json go"),
    option(OUTPUT, SIGNALS, ("progress", "auto|bar|plain|none", "auto"),
        "none says nothing on stderr of what is being done; the others say it in plain lines"),
    switch(OUTPUT, SIGNALS, "json",
        "Print the table as JSON"),

    option(OUTPUT, DEMO, ("output-dir", "DIR", "out/demo"),
        "Where report.html, summary.json and the runs' own directories go"),
    option(OUTPUT, DEMO, ("seeds", "N", "3"),
        "Repetitions, each with its own order of the rows; 1 to 20"),
    option(OUTPUT, DEMO, ("progress", "auto|bar|plain|none", "auto"),
        "How to show the run; auto is a bar on a terminal and plain lines elsewhere"),
];
