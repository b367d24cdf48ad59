//! The figures, one function each.

use std::io::Write as _;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use distill::codec::Codec;

use crate::ask::{self, Calls, InOrder};
use crate::child::{InTurn, Served};
use crate::{Figure, Scale};

const MIB: f64 = 1048576.0;

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// 1,000 single calls a second.
pub(crate) async fn unary(scale: &Scale) -> Result<Vec<Figure>> {
    let served = Served::start(None, &["--rate", "1000000"])?;
    let clients = ask::clients(&served.url(), 8).await?;
    let mut calls = ask::at_pace(&clients, 1000.0, scale.unary, &"x".repeat(32)).await;
    let failures = calls.failed.len() + calls.refused.len();
    if let Some(first) = calls.failed.first() {
        println!("first failure: {first}");
    }
    let p99 = ms(Calls::quantile(&mut calls.done, 0.99));
    let p50 = ms(Calls::quantile(&mut calls.done, 0.5));
    Ok(vec![
        Figure::at_most("single calls at 1,000/s: failures", failures as f64, 0.0, ""),
        Figure::at_least("answered", calls.done.len() as f64, scale.unary.as_secs_f64() * 1e3, ""),
        Figure::told("time, median", p50, "ms"),
        Figure::at_most("time, 99th percentile", p99, 50.0, "ms").timed(),
    ])
}

/// One stream with many sequences.
pub(crate) async fn stream(scale: &Scale) -> Result<Vec<Figure>> {
    let served = Served::start(None, &[])?;
    let (mut stream, classes, in_flight) = ask::stream(&served.url()).await?;
    let before = served.memory()?;
    let length = |id: u64| 32 + (id as usize * 37) % 480;
    let (mut order, mut delivered, mut positions) = (InOrder::default(), 0, 0);
    let job = |id| ask::job(id, length(id), 64, classes, Codec::Packed);
    let begin = Instant::now();
    ask::all(&mut stream, in_flight, scale.sequences, job, |scored| {
        for scored in order.take(scored)? {
            ensure!(scored.id == delivered, "{} after {delivered}", scored.id);
            ensure!(scored.signal.rows() == length(scored.id), "rows of {}", scored.id);
            delivered += 1;
            positions += scored.signal.rows();
        }
        Ok(())
    })
    .await?;
    let rate = positions as f64 / begin.elapsed().as_secs_f64();
    let grown = served.peak()?.saturating_sub(before) as f64 / MIB;
    let sent = positions as f64 * 388.0 / MIB;
    Ok(vec![
        Figure::at_least(
            "one stream: sequences delivered in order",
            delivered as f64,
            scale.sequences as f64,
            "",
        ),
        Figure::told(
            "answers that waited for an earlier one, at most",
            order.most_waiting as f64,
            "",
        ),
        Figure::told("sent, about", sent, "MiB"),
        // What one stream may have the server hold.
        Figure::at_most("server's memory, growth at its peak", grown, 64.0, "MiB"),
        Figure::told("positions a second", rate, ""),
    ])
}

/// Ten times what the device can do, for a device of 200 calls a second and for one of 500. The ten
/// times of the second leave two cores, which the client shares, little to spare: its refusals wait for
/// a core, and their time is told, not judged.
pub(crate) async fn overload(scale: &Scale) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for (speed, judged) in [(200, true), (500, false)] {
        let served = Served::start(None, &["--rate", &(speed * CALL_TOKENS).to_string()])?;
        let clients = ask::clients(&served.url(), 32).await?;
        let text = "x".repeat(CALL_TOKENS);
        let peak = ask::closed(&clients, 48, scale.overload, &text).await;
        let begin = Instant::now();
        let offered = 10.0 * speed as f64;
        let mut over = ask::at_pace(&clients, offered, scale.overload, &text).await;
        let took = begin.elapsed().as_secs_f64();
        let peak_rate = peak.done.len() as f64 / scale.overload.as_secs_f64();
        let goodput = 100.0 * over.done.len() as f64 / took / peak_rate;
        let [median, p99] = [0.5, 0.99].map(|share| ms(Calls::quantile(&mut over.refused, share)));
        let name = |what: &str| format!("{offered} calls/s: {what}");
        let last = name("time to a refusal, 99th percentile");
        figures.extend([
            Figure::told(&name("the device's full speed"), peak_rate, "calls/s"),
            Figure::at_least(&name("goodput, of full speed"), goodput, 90.0, "%").timed(),
            Figure::at_most(&name("failures, no refusals"), over.failed.len() as f64, 0.0, ""),
            Figure::at_least(&name("refusals"), over.refused.len() as f64, 1.0, ""),
            Figure::told(&name("time to a refusal, median"), median, "ms"),
            match judged {
                true => Figure::at_most(&last, p99, 10.0, "ms").timed(),
                false => Figure::told(&last, p99, "ms"),
            },
        ]);
    }
    Ok(figures)
}

/// Tokens of one of its calls.
const CALL_TOKENS: usize = 100;

/// Very many small requests, over a hundred connections in turn.
pub(crate) async fn memory(scale: &Scale) -> Result<Vec<Figure>> {
    let served = Served::start(None, &[])?;
    let ask = async |connections: u64| -> Result<()> {
        for _ in 0..connections {
            let (mut stream, classes, in_flight) = ask::stream(&served.url()).await?;
            let job = |id| ask::job(id, 8, 8, classes, Codec::Packed);
            ask::all(&mut stream, in_flight, scale.requests / 100, job, |_| Ok(())).await?;
        }
        Ok(())
    };
    ask(20).await?;
    let before = served.memory()?;
    ask(100).await?;
    let grown = (served.memory()? as f64 - before as f64) / MIB;
    Ok(vec![
        Figure::told("requests after warm-up", scale.requests as f64, ""),
        Figure::at_most("server's memory, growth", grown, 10.0, "MB"),
    ])
}

/// Very many connections that do nothing.
pub(crate) async fn idle(scale: &Scale) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for bound in [256, scale.connections + 8] {
        let served = Served::start(None, &["--connections", &bound.to_string()])?;
        ask::reach(&served.url()).await?;
        let mut held = Vec::new();
        for _ in 0..scale.connections {
            let mut stream = TcpStream::connect(&served.address)?;
            // A preface and empty settings. One that is refused may be closed already.
            let hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
            drop(stream.write_all(hello));
            held.push(stream);
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        let open = held.iter().filter(|stream| is_open(stream)).count();
        let name = format!("{} idle connections, bound {bound}: held", scale.connections);
        // All that may be, but for those of whoever asked whether it serves.
        let all = bound.min(scale.connections) as f64;
        figures.push(Figure::at_most(&name, open as f64, all, ""));
        figures.push(Figure::at_least(&name, open as f64, all - 4.0, ""));
        let memory = served.peak()? as f64 / MIB;
        figures.push(Figure::at_most("server's memory", memory, 256.0, "MB"));
        drop(held);
        ask::reach(&served.url()).await.context("the server no longer answers")?;
    }
    Ok(figures)
}

/// Whether the other side has kept this connection.
fn is_open(stream: &TcpStream) -> bool {
    let mut byte = [0; 1024];
    stream.set_nonblocking(true).is_ok()
        && loop {
            match std::io::Read::read(&mut &*stream, &mut byte) {
                Ok(0) => break false,
                Ok(_) => {}
                Err(error) => break error.kind() == std::io::ErrorKind::WouldBlock,
            }
        }
}

/// What the service costs over the model alone, 64 sequences at a time: each has one core, the
/// client of the service another. Both are asked in turn, a short time each, so that what else the
/// machine does meets both.
pub(crate) fn overhead(scale: &Scale, model: &str) -> Result<Vec<Figure>> {
    let served = Served::start(Some(0), &["--model", model])?;
    let (url, length) = (served.url(), SEQUENCE.to_string());
    let mut bare = InTurn::start(0, &["bare", "--model", model], scale.turn)?;
    let words = ["ask", "--url", &url, "--at-once", "64", "--length", &length];
    let mut service = InTurn::start(1, &words, scale.turn)?;
    let mut found = Vec::new();
    for turn in 0..scale.turns {
        // Who comes first changes as well.
        let first = (turn % 2 == 1).then(|| service.turn()).transpose()?;
        let bare = bare.turn()?;
        found.push((bare, first.map_or_else(|| service.turn(), Ok)?));
    }
    let mut ratios: Vec<f64> =
        found.iter().map(|(bare, with)| 100.0 * (1.0 - with / bare)).collect();
    ratios.sort_by(f64::total_cmp);
    // Half of all turns lie between these quartiles.
    let at = |share: f64| ratios[((ratios.len() - 1) as f64 * share).round() as usize];
    let mean = |of: fn(&(f64, f64)) -> f64| found.iter().map(of).sum::<f64>() / found.len() as f64;
    Ok(vec![
        Figure::told("bare engine, 64 sequences at a time", mean(|pair| pair.0), "tokens/s"),
        Figure::told("through the service", mean(|pair| pair.1), "tokens/s"),
        Figure::told("overhead, lower quartile of the turns", at(0.25), "%"),
        Figure::told("overhead, upper quartile", at(0.75), "%"),
        Figure::at_most("overhead, median of the turns", at(0.5), 3.0, "%").timed(),
    ])
}

/// Tokens of a sequence where speed is measured with a model.
pub(crate) const SEQUENCE: usize = 128;

/// Tokens a second over one stream that never runs empty, the first answers not counted.
pub(crate) async fn rate(
    url: &str,
    at_once: usize,
    length: usize,
    k: usize,
    time: Duration,
) -> Result<f64> {
    let (mut stream, classes, in_flight) = ask::stream(url).await?;
    let at_once = at_once.min(in_flight);
    let job = |id| ask::job(id, length, k.min(classes), classes, Codec::Packed);
    let warm = at_once as u64 * 2;
    ask::all(&mut stream, at_once, warm, job, |_| Ok(())).await?;
    let begin = Instant::now();
    let (mut tokens, mut took) = (0, Duration::MAX);
    let goes_on = |_| begin.elapsed() < time;
    ask::while_wanted(&mut stream, at_once, goes_on, job, |scored| {
        // Those that come when nothing more is asked come out of a queue that empties.
        if goes_on(0) {
            tokens += scored.signal.rows();
            took = begin.elapsed();
        }
        Ok(())
    })
    .await?;
    Ok(tokens as f64 / took.as_secs_f64())
}

/// Signal a second where the device costs nothing: one core each side.
pub(crate) fn wire(scale: &Scale) -> Result<Vec<Figure>> {
    let served = Served::start(Some(0), &[])?;
    let mut asking = InTurn::start(1, &["ask", "--url", &served.url()], scale.wire)?;
    let rate = asking.turn()?;
    Ok(vec![
        Figure::at_least("top-64 of 151,936 encoded, sent and decoded", rate, 1.5e6, "tokens/s")
            .timed(),
    ])
}
