//! The settings that are a choice among words.

use model::ops::head::Divergence;
use serde::{Serialize, Serializer};

/// A setting with a fixed list of words, spelled the same in flags, variables, files and reports.
pub trait Choice: Sized + Copy + PartialEq + 'static {
    /// Every value with its word, in the order help shows them.
    const WORDS: &'static [(&'static str, Self)];

    /// The value a word stands for; `_` and `-` are the same letter here.
    fn from_word(word: &str) -> Option<Self> {
        let plain = word.replace('_', "-");
        Self::WORDS.iter().find(|(w, _)| w.replace('_', "-") == plain).map(|&(_, value)| value)
    }

    /// The word of this value.
    fn word(self) -> &'static str {
        Self::WORDS.iter().find(|&&(_, value)| value == self).map_or("", |&(word, _)| word)
    }
}

/// Declares an enum of words: the type, its `Choice`, `Display` and serialisation.
macro_rules! choice {
    ($(#[$about:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub enum $name { $($(#[$doc])* $variant,)+ }

        impl Choice for $name {
            const WORDS: &'static [(&'static str, Self)] = &[$(($word, Self::$variant),)+];
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.word())
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.word())
            }
        }
    };
}

choice! {
    /// What the teacher tells of each position.
    SignalKind {
        /// The k most probable tokens and the mass of the rest.
        #[default]
        TopK = "top-k",
        /// The same, and beside them as many tokens that the student holds likeliest.
        Candidates = "candidates",
        /// Draws from the teacher's distribution.
        Sampled = "sampled",
        /// The last hidden state.
        Full = "full",
        /// The hidden state, coded in the metric of its softmax.
        Coded = "coded",
    }
}

choice! {
    /// How a hidden state is said.
    HiddenFormKind {
        /// Four bytes a number.
        F32 = "f32",
        /// Two bytes a number.
        #[default]
        Bf16 = "bf16",
        /// A byte a number, and a scale for each 64.
        Int8 = "int8",
        /// Half a byte a number, and a scale for each 64.
        Int4 = "int4",
    }
}

choice! {
    /// How far the student is said to be from the teacher.
    DivergenceKind {
        /// KL(teacher || student): the student covers all that the teacher holds possible.
        #[default]
        ForwardKl = "forward-kl",
        /// KL(student || teacher): the student keeps to what the teacher holds likely.
        ReverseKl = "reverse-kl",
        /// The generalised Jensen-Shannon divergence.
        Jsd = "jsd",
        /// Forward and reverse KL, weighed.
        Mixture = "mixture",
    }
}

impl DivergenceKind {
    /// The divergence it means with this beta.
    pub fn with(self, beta: f64) -> Divergence {
        match self {
            Self::ForwardKl => Divergence::ForwardKl,
            Self::ReverseKl => Divergence::ReverseKl,
            Self::Jsd => Divergence::Jsd { beta },
            Self::Mixture => Divergence::Mixture { beta },
        }
    }

    /// What tables and charts call it: KL is the teacher's unless it is said otherwise.
    pub fn heading(self, beta: f64) -> String {
        match self {
            Self::ForwardKl => "KL".to_owned(),
            Self::ReverseKl | Self::Jsd | Self::Mixture => self.with(beta).to_string(),
        }
    }
}

choice! {
    /// What becomes of the classes outside the top k.
    TailKind {
        /// One more outcome, "everything else": the divergence stays exact on k + 1 outcomes.
        #[default]
        Bucket = "bucket",
        /// Forgotten; the teacher is renormalised over the k. Biased, for comparison.
        Renormalise = "renormalise",
    }
}

choice! {
    /// How the teacher's answers are laid out on the wire.
    CodecKind {
        /// 5 bytes a class.
        #[default]
        Packed = "packed",
        /// 8 bytes a class, exact.
        Raw = "raw",
        /// Under 4 bytes a class, with the error of the packed one.
        Compact = "compact",
        /// Under 3 bytes a class, values in 8 bits.
        Compact8 = "compact8",
    }
}

choice! {
    /// How the learning rate moves, as in transformers.
    SchedulerKind {
        /// Always the same.
        #[default]
        Constant = "constant",
        /// Warm-up, then straight down to zero at the last step.
        Linear = "linear",
        /// Warm-up, then half a cosine down to zero at the last step.
        Cosine = "cosine",
        /// Warm-up, then always the same.
        ConstantWithWarmup = "constant_with_warmup",
    }
}

choice! {
    /// Which tokens are targets.
    LossOn {
        /// The answer's tokens only.
        #[default]
        Completion = "completion",
        /// Every token but the first.
        All = "all",
    }
}

choice! {
    /// Whether rows pass through the model's chat template.
    ChatTemplateUse {
        /// The model's template where the rows are conversations, plain text elsewhere.
        #[default]
        Auto = "auto",
        /// Never.
        None = "none",
        /// Always; rows that are not conversations become one.
        Model = "model",
    }
}

choice! {
    /// Number type of the products' operands.
    DtypeChoice {
        /// bf16 on a GPU that has it, f32 on a CPU.
        #[default]
        Auto = "auto",
        /// 32-bit floats.
        F32 = "f32",
        /// bfloat16.
        Bf16 = "bf16",
        /// 16-bit IEEE floats.
        F16 = "f16",
    }
}

choice! {
    /// What a training step computes again to save memory.
    RecomputeChoice {
        /// As little as the memory there is allows.
        #[default]
        Auto = "auto",
        /// Nothing: fastest.
        None = "none",
        /// The forward pass of each block.
        Blocks = "blocks",
        /// That, and the gradients.
        Gradients = "gradients",
    }
}

choice! {
    /// What becomes of a batch that does not fit into memory.
    OnMemory {
        /// It is computed in parts.
        #[default]
        Split = "split",
        /// The run is refused.
        Refuse = "refuse",
    }
}

choice! {
    /// Number type of the saved weights.
    SaveDtype {
        /// The master weights as they are.
        #[default]
        F32 = "f32",
        /// Rounded to bfloat16: half the size.
        Bf16 = "bf16",
    }
}

choice! {
    /// Where the student's first weights come from.
    StudentInit {
        /// The model's own files.
        #[default]
        Pretrained = "pretrained",
        /// Drawn at random from the seed; only config and tokenizer are read.
        Random = "random",
    }
}

choice! {
    /// How a run is shown while it goes on.
    ProgressKind {
        /// A bar on a terminal, plain lines elsewhere.
        #[default]
        Auto = "auto",
        /// A bar.
        Bar = "bar",
        /// A line now and then.
        Plain = "plain",
        /// Nothing.
        None = "none",
    }
}

/// Where a run goes on from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Resume {
    /// From the start.
    #[default]
    Off,
    /// The newest whole checkpoint in the output directory, or from the start when there is none.
    Auto,
    /// This checkpoint directory.
    Path(std::path::PathBuf),
}

impl Serialize for Resume {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Off => serializer.serialize_str("off"),
            Self::Auto => serializer.serialize_str("auto"),
            Self::Path(path) => serializer.collect_str(&path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_with_either_dash_and_written_as_listed() {
        assert_eq!(
            SchedulerKind::from_word("constant-with-warmup"),
            Some(SchedulerKind::ConstantWithWarmup)
        );
        assert_eq!(SignalKind::from_word("top_k"), Some(SignalKind::TopK));
        assert_eq!(SignalKind::from_word("topk"), None);
        assert_eq!(SchedulerKind::ConstantWithWarmup.to_string(), "constant_with_warmup");
    }
}
