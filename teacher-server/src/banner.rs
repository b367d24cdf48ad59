//! What a person reads when the server has started.

use std::time::Duration;

use distill::handshake::TeacherFacts;

/// Writes the facts to the log, one line each.
pub fn log(facts: &TeacherFacts, load_time: Duration) {
    for line in lines(facts, load_time) {
        tracing::info!("{line}");
    }
}

fn lines(facts: &TeacherFacts, load_time: Duration) -> Vec<String> {
    let revision = if facts.revision.is_empty() { "local directory" } else { &facts.revision };
    let limits = &facts.limits;
    vec![
        format!("teacher-server {}", facts.server_version),
        format!("model                  {} ({revision})", facts.model),
        format!(
            "parameters             {}, loaded in {:.1} s",
            millions(facts.parameters),
            load_time.as_secs_f64()
        ),
        format!("computes               {} on {}", facts.dtype, facts.device),
        format!("model fingerprint      {}", facts.model_fingerprint),
        format!("tokenizer fingerprint  {}", facts.tokenizer_fingerprint),
        format!(
            "vocabulary             {} classes, {} tokenizer ids",
            facts.vocab_size, facts.tokenizer_size
        ),
        format!(
            "a request              up to {} tokens, top-k up to {}, {} bytes",
            limits.max_sequence_tokens, limits.max_top_k, limits.max_request_bytes
        ),
        format!(
            "a reply                messages of up to {} bytes, {} requests in flight a stream",
            limits.max_reply_bytes, limits.max_in_flight_per_stream
        ),
        format!(
            "a batch                {} tokens; {} sequences and {} tokens may wait",
            limits.max_batch_tokens, limits.max_queued_sequences, limits.max_queued_tokens
        ),
    ]
}

fn millions(parameters: u64) -> String {
    match parameters {
        0..10_000_000 => format!("{:.2} million", parameters as f64 / 1e6),
        10_000_000..1_000_000_000 => format!("{:.0} million", parameters as f64 / 1e6),
        _ => format!("{:.2} billion", parameters as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Settings;
    use crate::testing::facts;

    #[test]
    fn the_banner_names_what_one_has_to_know() {
        let facts = Settings::DEFAULT.resolve(&facts(32)).unwrap();
        let text = lines(&facts, Duration::from_millis(1500)).join("\n");
        for wanted in [
            "fake (local directory)",
            "loaded in 1.5 s",
            "f32 on cpu",
            &"a5".repeat(32),
            &"5a".repeat(32),
            "32 classes",
            "up to 4096 tokens, top-k up to 1024",
            "16384 tokens; 512 sequences and 65536 tokens",
        ] {
            assert!(text.contains(wanted), "{wanted} is missing in\n{text}");
        }
        assert_eq!(millions(5_812_345), "5.81 million");
        assert_eq!(millions(596_049_920), "596 million");
        assert_eq!(millions(4_022_468_096), "4.02 billion");
    }
}
