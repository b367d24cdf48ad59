//! Asks a teacher what it expects after each of some tokens: `score ADDRESS TOKEN…`, such as
//! `score grpc://127.0.0.1:50051 16 17 220 10`.

use client::{Access, Address, Heard};
use distill::codec::Codec;
use distill::queue::Priority;
use distill::signal::Entries;
use proto::convert::ScoreJob;

/// Entries a position.
const K: usize = 4;

#[tokio::main(flavor = "current_thread")]
#[expect(clippy::print_stdout, reason = "it is a program")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut words = std::env::args().skip(1);
    let url = words.next().ok_or("give an address and some token ids")?;
    let tokens: Vec<u32> = words.map(|word| word.parse()).collect::<Result<_, _>>()?;

    let teacher = Address::parse(&url, &Access::default())?;
    let facts = teacher.info().await?;
    let classes = facts.vocab_size;
    println!("{} of {} parameters on {}", facts.model, facts.parameters, facts.device);

    let all = 0..tokens.len() as u32;
    let mut stream = teacher.open(facts.terms(classes)).await?;
    stream.send(ScoreJob {
        id: 1,
        tokens,
        ranges: vec![all],
        temperature: 1.0,
        entries: Entries::Top,
        k: K,
        codec: Codec::Raw,
        classes,
        priority: Priority::Normal,
    })?;
    let answer = loop {
        match stream.next().await? {
            Heard::Answer { scored, .. } => break scored,
            Heard::Fault { fault, .. } => return Err(fault.into()),
            // A long answer comes in parts.
            Heard::Part { .. } | Heard::Stray { .. } => {}
        }
    };
    let Some(signal) = answer.signal.top_k() else {
        return Err("listed tokens were asked for".into());
    };
    for row in 0..signal.rows() {
        let ids = &signal.ids[row * K..(row + 1) * K];
        let (p, rest) = signal.probabilities(row);
        println!("position {row}: tokens {ids:?} with {p:.4?}, all others {rest:.4}");
    }
    Ok(())
}
