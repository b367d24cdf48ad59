//! `card_bench cuda:N [LINE…]`: the figures of a card, each a line of JSON. Built with `--features cuda`; `cargo xtask gpu` runs it
//! beside PyTorch. Exit 1 where a line failed, 2 where there is no card.
#![expect(clippy::print_stderr, reason = "a command's output")]
#![cfg_attr(feature = "cuda", expect(clippy::print_stdout, reason = "as above"))]

use std::process::ExitCode;

/// All lines, in the order in which they are measured.
const LINES: [&str; 7] =
    ["rate", "copy", "adamw", "attention", "output-layer", "student", "teacher"];

fn main() -> ExitCode {
    model::malloc::tune();
    let mut arguments = std::env::args().skip(1);
    let device = arguments.next().unwrap_or_default();
    let Some(ordinal) = device.strip_prefix("cuda:").and_then(|n| n.parse().ok()) else {
        eprintln!("usage: card_bench cuda:N [{}]", LINES.join("] ["));
        return ExitCode::from(2);
    };
    let asked: Vec<String> = arguments.collect();
    if let Some(unknown) = asked.iter().find(|line| !LINES.contains(&line.as_str())) {
        eprintln!("error: {unknown} is none of {}", LINES.join(", "));
        return ExitCode::from(2);
    }
    let wanted = |line: &&str| asked.is_empty() || asked.iter().any(|asked| asked == line);
    on_card::measure(ordinal, LINES.into_iter().filter(wanted))
}

#[cfg(not(feature = "cuda"))]
mod on_card {
    use std::process::ExitCode;

    pub(super) fn measure(_: usize, _: impl Iterator<Item = &'static str>) -> ExitCode {
        eprintln!("error: built without --features cuda");
        ExitCode::from(2)
    }
}

#[cfg(feature = "cuda")]
mod on_card {
    use std::error::Error;
    use std::process::ExitCode;

    use kernels::card::Card;
    use model::card::bench::{
        Figure, QWEN3_0_6B, QWEN3_4B, REAL, attention_both, copy, optimiser, output_layer, rate,
        shape, student, teacher,
    };

    pub(super) fn measure(ordinal: usize, lines: impl Iterator<Item = &'static str>) -> ExitCode {
        let mut failed = false;
        for line in lines {
            // A card of its own for each: nothing of one lies in the way of the next.
            let mut card = match Card::open(ordinal) {
                Ok(card) => card,
                Err(error) => {
                    eprintln!("error: {error}");
                    return ExitCode::from(2);
                }
            };
            let figures: Result<Vec<Figure>, Box<dyn Error>> = match line {
                "rate" => one(rate(&mut card, REAL)),
                "copy" => one(copy(&mut card, REAL)),
                "adamw" => one(optimiser(&mut card, REAL)),
                "attention" => one(attention_both(&mut card, REAL)),
                "output-layer" => output_layer(&mut card, &shape(QWEN3_0_6B), REAL)
                    .map(Into::into)
                    .map_err(Into::into),
                "student" => {
                    student(card, &shape(QWEN3_0_6B), REAL).map(Into::into).map_err(Into::into)
                }
                _ => one(teacher(card, &shape(QWEN3_4B), REAL)),
            };
            match figures {
                Ok(figures) => figures.iter().for_each(print),
                Err(error) => {
                    eprintln!("error: {line}: {error}");
                    failed = true;
                }
            }
        }
        if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
    }

    fn one<E: Error + 'static>(figure: Result<Figure, E>) -> Result<Vec<Figure>, Box<dyn Error>> {
        Ok(vec![figure?])
    }

    fn print(figure: &Figure) {
        let Figure { name, seconds, operations, bytes, memory } = figure;
        let line = serde_json::json!({
            "name": name, "seconds": seconds, "operations": operations, "bytes": bytes,
            "memory": memory,
        });
        println!("{line}");
    }
}
