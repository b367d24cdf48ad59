//! The demonstration's own models: how they were made, and how they get into a directory.
//!
//! They lie in `student-trainer/demo/` and within this program. `student-trainer demo make-models`
//! makes them anew from nothing: it writes the text, trains a tokenizer on it, draws random
//! weights, and trains them with this trainer's own `train --alpha 0 --student-init random`.

use std::fs;
use std::path::Path;

use anyhow::{Context, anyhow};
use serde_json::json;
use student_trainer::stop::Stop;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, TokenizerBuilder};

use super::compare::settings;
use super::corpus::{Row, Split, rows, to_jsonl};
use crate::progress::Console;
use crate::recorder::Recorder;

/// Seed of the teacher's text, and how much of it there is.
const CORPUS_SEED: u64 = 1;
const CORPUS_ROWS: usize = 48_000;
/// Rows the tokenizer is trained on, and its size.
const TOKENIZER_ROWS: usize = 8_000;
const VOCABULARY: usize = 1024;
/// Special tokens, in the order of their ids.
const SPECIAL: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];

/// The shape of a model and how long it was trained.
struct Recipe {
    name: &'static str,
    hidden: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    mlp: usize,
    steps: usize,
    learning_rate: &'static str,
}

/// The teacher is six times the student and was trained twenty times as long; the student was
/// stopped early, so that there is something to teach it.
const RECIPES: [Recipe; 2] = [
    Recipe {
        name: "teacher",
        hidden: 128,
        layers: 4,
        heads: 4,
        kv_heads: 2,
        mlp: 384,
        steps: 8_000,
        learning_rate: "4e-3",
    },
    Recipe {
        name: "student",
        hidden: 64,
        layers: 2,
        heads: 2,
        kv_heads: 1,
        mlp: 192,
        steps: 400,
        learning_rate: "4e-3",
    },
];

/// A model's files with their contents.
macro_rules! files_of {
    ($model:literal) => {
        [
            files_of!($model, "config.json"),
            files_of!($model, "model.safetensors"),
            files_of!($model, "tokenizer.json"),
            files_of!($model, "tokenizer_config.json"),
            files_of!($model, "chat_template.jinja"),
        ]
    };
    ($model:literal, $file:literal) => {
        ($file, include_bytes!(concat!("../../demo/", $model, "/", $file)).as_slice())
    };
}

/// Writes teacher and student into `dir/teacher` and `dir/student`.
pub(super) fn unpack(dir: &Path) -> anyhow::Result<()> {
    for (model, files) in [("teacher", files_of!("teacher")), ("student", files_of!("student"))] {
        let target = dir.join(model);
        fs::create_dir_all(&target).with_context(|| format!("making {}", target.display()))?;
        for (name, bytes) in files {
            let path = target.join(name);
            fs::write(&path, bytes).with_context(|| format!("writing {}", path.display()))?;
        }
    }
    Ok(())
}

/// Makes teacher and student from nothing.
pub(crate) fn make_models(dir: &Path, console: &Console, stop: &Stop) -> anyhow::Result<()> {
    let work = dir.join("make-models");
    let corpus = rows(CORPUS_SEED, CORPUS_ROWS, Split::Train);
    fs::create_dir_all(&work).with_context(|| format!("making {}", work.display()))?;
    fs::write(work.join("corpus.jsonl"), to_jsonl(&corpus)?)?;
    let held_out = rows(super::HELD_OUT_SEED, super::HELD_OUT_ROWS, Split::HeldOut);
    fs::write(work.join("held-out.jsonl"), to_jsonl(&held_out)?)?;
    let tokenizer = tokenizer(&corpus[..TOKENIZER_ROWS])?;
    for recipe in &RECIPES {
        let blank = work.join(format!("{}-blank", recipe.name));
        write_blank(&blank, recipe, &tokenizer)?;
        let trained = work.join(recipe.name);
        let path = |p: &Path| p.display().to_string();
        let config = settings(&[
            ("alpha", "0".to_owned()),
            ("student", path(&blank)),
            ("student-init", "random".to_owned()),
            ("train-file", path(&work.join("corpus.jsonl"))),
            ("eval-file", path(&work.join("held-out.jsonl"))),
            ("output-dir", path(&trained)),
            ("overwrite-output-dir", "true".to_owned()),
            ("save-dtype", "bf16".to_owned()),
            ("max-steps", recipe.steps.to_string()),
            ("per-device-train-batch-size", "16".to_owned()),
            ("learning-rate", recipe.learning_rate.to_owned()),
            ("lr-scheduler-type", "cosine".to_owned()),
            ("warmup-steps", "50".to_owned()),
            ("save-steps", "0".to_owned()),
        ])?;
        let mut recorder = Recorder::labelled(&config, console, recipe.name);
        let summary = student_trainer::train::train(&config, &mut recorder, stop);
        recorder.ended();
        if summary?.stopped_early {
            return Ok(());
        }
        let target = dir.join(recipe.name);
        fs::create_dir_all(&target)?;
        for (name, _) in files_of!("teacher") {
            fs::copy(trained.join(name), target.join(name))
                .with_context(|| format!("copying {name} to {}", target.display()))?;
        }
    }
    fs::remove_dir_all(&work)?;
    console.tell(&format!("wrote {0}/teacher and {0}/student", dir.display()));
    Ok(())
}

/// A byte-level BPE tokenizer trained on the text.
fn tokenizer(rows: &[Row]) -> anyhow::Result<String> {
    let failed = |e| anyhow!("training the tokenizer: {e}");
    let bytes = ByteLevel::new(false, true, true);
    let mut tokenizer = TokenizerBuilder::new()
        .with_model(BPE::default())
        .with_normalizer(None::<tokenizers::NormalizerWrapper>)
        .with_pre_tokenizer(Some(bytes))
        .with_post_processor(None::<tokenizers::PostProcessorWrapper>)
        .with_decoder(Some(bytes))
        .build()
        .map_err(failed)?;
    let mut trainer = BpeTrainer::builder()
        .vocab_size(VOCABULARY)
        .show_progress(false)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .special_tokens(SPECIAL.map(|token| AddedToken::from(token, true)).to_vec())
        .build();
    let texts = rows.iter().map(|row| format!("{}\n{}", row.question, row.answer));
    tokenizer.train(&mut trainer, texts).map_err(failed)?;
    tokenizer.to_string(true).map_err(failed)
}

/// A model's directory without weights.
fn write_blank(dir: &Path, recipe: &Recipe, tokenizer: &str) -> anyhow::Result<()> {
    let config = json!({
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "attention_bias": false,
        "attention_dropout": 0.0,
        "bos_token_id": null,
        "dtype": "bfloat16",
        "eos_token_id": 2,
        "head_dim": 32,
        "hidden_act": "silu",
        "hidden_size": recipe.hidden,
        "initializer_range": 0.02,
        "intermediate_size": recipe.mlp,
        "max_position_embeddings": 512,
        "num_attention_heads": recipe.heads,
        "num_hidden_layers": recipe.layers,
        "num_key_value_heads": recipe.kv_heads,
        "pad_token_id": 0,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": true,
        "use_cache": true,
        "use_sliding_window": false,
        "vocab_size": VOCABULARY,
    });
    let tokenizer_config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": SPECIAL[2],
        "pad_token": SPECIAL[0],
        "additional_special_tokens": [SPECIAL[1]],
        "clean_up_tokenization_spaces": false,
        "model_max_length": 512,
    });
    let template = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + \
                    message['content'] + '<|im_end|>\\n' }}{% endfor %}\
                    {% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";
    fs::create_dir_all(dir)?;
    let write = |name: &str, text: String| {
        let path = dir.join(name);
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
    };
    write("config.json", serde_json::to_string_pretty(&config)? + "\n")?;
    write("tokenizer_config.json", serde_json::to_string_pretty(&tokenizer_config)? + "\n")?;
    write("chat_template.jinja", template.to_owned())?;
    write("tokenizer.json", tokenizer.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tokenizer_is_the_committed_one_and_knows_its_special_tokens() {
        let text = tokenizer(&rows(CORPUS_SEED, TOKENIZER_ROWS, Split::Train)).unwrap();
        let committed = files_of!("teacher", "tokenizer.json").1;
        assert!(text.as_bytes() == committed, "make-models would write another tokenizer.json");
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        let added: Vec<_> = json["added_tokens"].as_array().unwrap().iter().collect();
        let named: Vec<_> = added.iter().map(|t| t["content"].as_str().unwrap()).collect();
        assert_eq!(named, SPECIAL);
        assert_eq!(json["model"]["vocab"].as_object().unwrap().len(), VOCABULARY);
    }

    #[test]
    fn teacher_and_student_share_a_tokenizer_and_differ_in_size() {
        let [teacher, student] = [files_of!("teacher"), files_of!("student")];
        assert_eq!(teacher[2].1, student[2].1);
        assert!(teacher[1].1.len() > 5 * student[1].1.len());
        assert!(teacher[1].1.len() + student[1].1.len() < 4 << 20, "a few MB in all");
    }
}
