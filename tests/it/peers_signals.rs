//! What the Python client, written from docs/wire.md, reads of every signal: the same as we do, to the bit.

use std::path::Path;
use std::sync::Arc;

use client::{Access, Address, Heard};
use distill::codec::Codec;
use distill::coded::{Code, MAX_NUMBER, Numbers, Parts, Rung};
use distill::fingerprint::Fingerprint;
use distill::hidden::{self, HiddenForm};
use distill::queue::Priority;
use distill::signal::{Draws, Entries, Signal};
use model::coding::Decoder;
use proto::convert::ScoreJob;
use serde_json::{Value, json};
use tests::{Teacher, python, root, run};

/// Token ids as good as random, of a model of 1,024 classes: hidden states no text has.
fn tokens(count: u64) -> Vec<u32> {
    (0..count).map(|at| (((at + 1) * 2_654_435_761) >> 7) as u32 % 1000).collect()
}

/// What is asked for: a name, the signal, exact entries beside draws.
fn asked(code: Fingerprint) -> Vec<(String, Entries, usize)> {
    let forms = [HiddenForm::F32, HiddenForm::Bf16, HiddenForm::Int8, HiddenForm::Int4];
    // The coarsest know no direction, the finest have every row verbatim.
    let rungs = [-1600, -200, -150, -117, -64, -33, 0, 40, 1600].map(Rung);
    let coded = rungs.map(|rung| HiddenForm::Coded { code, rung });
    let name = |form: &HiddenForm| {
        if let HiddenForm::Coded { rung, .. } = form {
            return format!("coded{}", rung.0);
        }
        form.to_string()
    };
    let hidden = forms.iter().chain(&coded).map(|form| (name(form), Entries::Hidden(*form), 0));
    let drawn = [(1, 3, 0), (16, 5, 0), (1000, u64::MAX - 6, 0), (16, 5, 8), (3, 0, 1000)];
    let drawn = drawn.into_iter().map(|(draws, seed, k)| {
        (format!("drawn{draws}beside{k}"), Entries::Drawn { draws, seed }, k)
    });
    hidden.chain(drawn).collect()
}

/// The same as requests, each of a long sequence with a gap and of a short one.
fn jobs(code: Fingerprint) -> (Vec<String>, Vec<ScoreJob>) {
    let (mut names, mut jobs) = (Vec::new(), Vec::new());
    for (name, entries, k) in asked(code) {
        for (tokens, ranges) in [(tokens(300), vec![1..40, 60..300]), (tokens(5), vec![0..3, 3..5])]
        {
            names.push(format!("{name}-{}", tokens.len()));
            let (id, entries) = (jobs.len() as u64, entries.clone());
            let (temperature, codec, priority) = (2.0, Codec::Packed, Priority::Normal);
            jobs.push(ScoreJob {
                id,
                tokens,
                ranges,
                temperature,
                entries,
                k,
                codec,
                classes: 1024,
                priority,
            });
        }
    }
    (names, jobs)
}

/// A request for Python.
fn said(name: &str, job: &ScoreJob) -> Value {
    let (signal, more) = match &job.entries {
        Entries::Drawn { draws, seed } => ("SAMPLED", json!({"draws": draws, "seed": seed})),
        Entries::Hidden(HiddenForm::Coded { rung, .. }) => ("CODED", json!({"rung": rung.0})),
        Entries::Hidden(form) => ("FULL", json!({"hidden_form": form.to_string()})),
        Entries::Top | Entries::Named(_) => panic!("listed tokens are compared in Python"),
    };
    let ranges: Vec<_> = job.ranges.iter().map(|range| [range.start, range.end]).collect();
    json!({"name": name, "signal": signal, "tokens": job.tokens, "ranges": ranges,
        "temperature": job.temperature, "top_k": job.k, "more": more})
}

/// Asks the teacher ourselves.
async fn answers(teacher: &Address, jobs: &[ScoreJob]) -> Vec<Signal> {
    let facts = teacher.info().await.expect("GetInfo");
    let mut stream = teacher.open(facts.terms(facts.vocab_size)).await.expect("a stream");
    let mut answers = vec![None; jobs.len()];
    for job in jobs {
        stream.send(job.clone()).expect("room");
        loop {
            match stream.next().await.expect("an answer") {
                Heard::Answer { scored, .. } => {
                    answers[scored.id as usize] = Some(scored.signal);
                    break;
                }
                Heard::Fault { fault, .. } => panic!("{fault}"),
                Heard::Part { .. } | Heard::Stray { .. } => {}
            }
        }
    }
    answers.into_iter().map(|answer| answer.expect("each is answered")).collect()
}

/// Hidden states as the bytes of their float32, read by what a trainer reads them with.
fn hidden_bytes(code: &Arc<Code>, signal: &Signal) -> Vec<u8> {
    let Signal::Hidden(rows) = signal else { panic!("hidden states were asked for") };
    let of_part = |(count, bytes): &(usize, Vec<u8>)| {
        let HiddenForm::Coded { rung, .. } = rows.form else {
            return hidden::decode(bytes, *count, rows.width, rows.form).expect("hidden states");
        };
        let numbers = code.decode(bytes, *count).expect("coded rows");
        let states = Decoder::new(Arc::clone(code), rung).hidden_states(&numbers);
        assert_eq!(states, code.reconstruct(rung, &numbers));
        states
    };
    let values = rows.parts.iter().flat_map(|part| of_part(part).values);
    values.flat_map(f32::to_le_bytes).collect()
}

/// Draws as Python writes them: for each row `log_rest` and the exact ids and values as bits, then how many
/// ids were drawn, which, and how often.
fn draws_bytes(draws: &Draws) -> Vec<u8> {
    let mut words: Vec<u32> = Vec::new();
    for row in 0..draws.rows() {
        words.push(draws.log_rest[row].to_bits());
        let exact = row * draws.k..(row + 1) * draws.k;
        words.extend(&draws.exact_ids[exact.clone()]);
        words.extend(draws.exact_log_p[exact].iter().map(|log_p| log_p.to_bits()));
        let start = row.checked_sub(1).map_or(0, |before| draws.ends[before]);
        let drawn = start..draws.ends[row];
        words.push(drawn.len() as u32);
        words.extend(&draws.ids[drawn.clone()]);
        words.extend(&draws.counts[drawn]);
    }
    words.into_iter().flat_map(u32::to_le_bytes).collect()
}

/// Rows that no teacher is likely to send, of a code of our own: escapes, numbers up to the largest,
/// exceptions, and rows that are verbatim, in blocks. Writes them into `folder`; gives what Python is told of each, and
/// its hidden states.
fn made_up(folder: &Path) -> Vec<(Value, Vec<u8>)> {
    const WIDTH: usize = 24;
    const ROWS: usize = 150;
    // A sawtooth's shape is as good as any other.
    let wave = |seed: usize, at: usize| ((at * 7919 + seed * 104_729) % 2003) as f64 / 1001.0 - 1.0;
    let spread = |j: usize| 8.0 * (-(j as f64) / 2.0).exp2();
    let spreads: Vec<f64> = (0..WIDTH).map(spread).collect();
    let matrix: Vec<f64> = (0..WIDTH * WIDTH).map(|at| wave(1, at)).collect();
    let code = Code::new(Parts {
        model: Fingerprint([7; 32]),
        mean: (0..WIDTH).map(|at| wave(2, at) as f32).collect(),
        spreads: &spreads,
        matrix: &matrix,
        standardised: (0..20_000).map(|at| (2.0 * wave(3, at)) as f32).collect(),
    });
    let code = Arc::new(code.expect("a code"));
    std::fs::write(folder.join("made-up.code"), code.to_bytes()).expect("a file");
    let of_rung = |rung: Rung| {
        let number = |at: usize| (wave(4, at) * spread(at % WIDTH) / rung.step()).round() as i32;
        let mut numbers: Vec<i32> = (0..ROWS * WIDTH).map(number).collect();
        // Small ones at every step, fine ones too, where what is likely would be above the largest.
        for (at, number) in numbers.iter_mut().enumerate().take(20 * WIDTH).skip(10 * WIDTH) {
            *number = (at * 7919 % 2003) as i32 % 5 - 2;
        }
        for (row, j, number) in [
            (3, 0, MAX_NUMBER),
            (4, 0, -MAX_NUMBER),
            (63, 1, 300),
            (64, 2, -300),
            (70, 0, 20_000),
            (71, 23, -3),
            (71, 22, 7),
            (72, 23, MAX_NUMBER),
            (73, 23, -MAX_NUMBER),
            (100, 5, MAX_NUMBER + 1),
            (149, 2, -MAX_NUMBER - 1),
        ] {
            numbers[row * WIDTH + j] = number;
        }
        let hidden: Vec<f32> = (0..ROWS * WIDTH).map(|at| at as f32 / 3.0 - 900.5).collect();
        let bytes = code.encode(rung, &numbers, &hidden);
        let read: Numbers = code.decode(&bytes, ROWS).expect("coded rows");
        let name = format!("made-up{}", rung.0);
        std::fs::write(folder.join(format!("{name}.coded")), bytes).expect("a file");
        let states = code.reconstruct(rung, &read).values;
        let told = json!({"name": name, "rows": ROWS, "rung": rung.0});
        (told, states.into_iter().flat_map(f32::to_le_bytes).collect())
    };
    [-1600, -300, -150, -90, -33, -7, 0, 1, 32, 120, 1600].map(|rung| of_rung(Rung(rung))).into()
}

#[test]
#[expect(clippy::print_stdout, reason = "the figures, for whoever asks with --nocapture")]
fn python_reads_of_every_signal_what_we_read() {
    let test = "python_reads_of_every_signal_what_we_read";
    let modules = ["grpc", "grpc_tools", "numpy", "xxhash", "blake3"];
    let Some(python) = python(&modules, test) else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).display().to_string();
    // Small messages: of long answers there are several, and of blobs many.
    let flags = ["--dtype", "f32", "--max-reply-bytes", "16384", "--calibration-dir"];
    let codes = path("codes");
    let flags = [&flags[..], &[&codes]].concat();
    let teacher = Teacher::start(&root().join("student-trainer/demo/teacher"), &flags);

    let address = Address::parse(&teacher.url(), &Access::default()).expect("an address");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let blob = runtime.block_on(async {
        let blob = address.decoder(true).await.expect("a decoder").code.expect("a code");
        address.fetch(blob, folder.path()).await.expect("the code")
    });
    let code = Code::from_bytes(&std::fs::read(blob).expect("the code")).expect("the code");
    let code = Arc::new(code);
    let (names, jobs) = jobs(code.fingerprint());
    let ours = runtime.block_on(answers(&address, &jobs));
    let made_up = made_up(folder.path());
    let told = json!({
        "requests": names.iter().zip(&jobs).map(|(name, job)| said(name, job)).collect::<Vec<_>>(),
        "made_up": made_up.iter().map(|(told, _)| told).collect::<Vec<_>>(),
    });
    std::fs::write(path("told.json"), told.to_string()).expect("a file");

    let output = run(python.script("read_signals.py").arg(&teacher.grpc).arg(folder.path()));
    let figures = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{figures}{}", String::from_utf8_lossy(&output.stderr));
    println!("{figures}");
    let theirs = |name: &str| std::fs::read(path(&format!("{name}.bytes"))).expect(name);
    let mut rows = [0; 3];
    for ((name, job), signal) in names.iter().zip(&jobs).zip(&ours) {
        let (kind, wanted) = match signal {
            Signal::Drawn(draws) => (0, draws_bytes(draws)),
            Signal::Hidden(_) => {
                (1 + usize::from(job.entries.code().is_some()), hidden_bytes(&code, signal))
            }
            Signal::TopK(_) => panic!("none was asked for"),
        };
        assert!(!wanted.is_empty() && theirs(name) == wanted, "{name}: other bytes than ours");
        rows[kind] += job.rows();
    }
    for (told, wanted) in &made_up {
        let name = told["name"].as_str().expect("a name");
        assert!(theirs(name) == *wanted, "{name}: other bytes than ours");
        rows[2] += 150;
    }
    let [drawn, full, coded] = rows;
    println!("the same to the bit: rows of draws {drawn}, full {full}, coded {coded}");
}

/// The program to read and to copy from shows each of them.
#[test]
fn the_python_example_shows_every_signal() {
    let test = "the_python_example_shows_every_signal";
    let modules = ["grpc", "grpc_tools", "numpy", "xxhash", "blake3"];
    let Some(python) = python(&modules, test) else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let codes = folder.path().join("codes").display().to_string();
    let model = root().join("student-trainer/demo/teacher");
    let teacher = Teacher::start(&model, &["--calibration-dir", &codes]);
    for (flags, said) in [
        (&["sampled", "--exact", "4"][..], "beside 4 exact"),
        (&["full", "--hidden-form", "int8"], "128 numbers, int8; 132."),
        (&["coded"], "coded at the step 2^("),
        (&["coded", "--rung", "-100"], "coded at the step 2^(-100/16)"),
    ] {
        let script = root().join("clients/python/score.py");
        let mut command = std::process::Command::new(python.program());
        let command = command.arg(script).args(["--teacher", &teacher.grpc, "--signal"]);
        let output = run(command.args(flags));
        let shown = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{shown}{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(shown.matches(said).count(), 2, "{shown}");
        assert!(shown.contains("checksums: equal"), "{shown}");
    }
}
