//! What each model answers to a question none of them has seen.

use std::path::Path;

use anyhow::{Context, anyhow};
use candle_core::Device;
use hub::chat::{ChatTemplate, Message};
use hub::tokenizer::Tokenizer;
use model::config::Qwen3Config;
use model::generate::greedy;
use model::ops::Precision;
use model::qwen3::Qwen3;
use model::weights::Weights;

use super::compare::{RUNS, Way};
use super::corpus::Row;
use crate::report::Sample;

/// Longest answer, in tokens.
const MOST_TOKENS: usize = 120;

/// The answers of student before and after and of the teacher to a story and to a sum.
pub(super) fn sample(dir: &Path, held_out: &[Row]) -> anyhow::Result<Vec<Sample>> {
    let speakers = [
        ("student before".to_owned(), dir.join("data/student")),
        ("plain training".to_owned(), dir.join(RUNS).join(Way::Plain.directory(1))),
        ("distilled".to_owned(), dir.join(RUNS).join(Way::Distilled.directory(1))),
        ("teacher".to_owned(), dir.join("data/teacher")),
    ];
    let speakers: Vec<_> = speakers
        .into_iter()
        .map(|(name, dir)| Ok((name, Speaker::load(&dir)?)))
        .collect::<anyhow::Result<_>>()?;
    // The first sum and the first story among the held-out rows: not chosen by their answers.
    let kinds: [fn(&Row) -> bool; 2] =
        [|row| row.answer.contains("The answer is"), |row| row.question.contains("story")];
    let questions = kinds.iter().filter_map(|&kind| held_out.iter().find(|&row| kind(row)));
    questions
        .map(|row| {
            let mut answers = vec![("the text's answer".to_owned(), row.answer.clone())];
            for (name, speaker) in &speakers {
                answers.push((name.clone(), speaker.answer(&row.question)?));
            }
            Ok(Sample { prompt: row.question.clone(), answers })
        })
        .collect()
}

/// A model with its tokenizer.
struct Speaker {
    model: Qwen3,
    tokenizer: Tokenizer,
    template: ChatTemplate,
}

impl Speaker {
    fn load(dir: &Path) -> anyhow::Result<Self> {
        let config = Qwen3Config::from_dir(dir)?;
        let weights = Weights::load(dir, &config, candle_core::DType::F32, &Device::Cpu)?;
        Ok(Self {
            model: Qwen3::new(config, weights, Precision::F32)?,
            tokenizer: Tokenizer::load(dir)?,
            template: ChatTemplate::load(dir)?.context("a demonstration model has a template")?,
        })
    }

    /// The most probable answer, token by token.
    fn answer(&self, question: &str) -> anyhow::Result<String> {
        let prompt = self.template.render(&[Message::new("user", question)], true)?;
        let prompt = self.tokenizer.encode(&prompt)?;
        let stop = self.tokenizer.eos().ok_or_else(|| anyhow!("the tokenizer names no eos"))?;
        let answer = greedy(&self.model, &prompt, MOST_TOKENS, &[stop])?;
        Ok(self.tokenizer.decode(&answer)?.trim().to_owned())
    }
}
