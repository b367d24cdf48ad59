//! The weights of a model, in a directory or a GGUF file: which files hold them, and that they are the ones the
//! configuration describes. Nothing in a file is ignored in silence.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use crate::config::Qwen3Config;
use crate::gguf::{self, GgufError};
use crate::parameters::ParameterIndex;
use crate::tensor_file::{StoredTensor, TensorFile, TensorFileError};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// How many names an error lists before it only counts.
const NAMES_SHOWN: usize = 8;
/// Bytes compared at once.
const PIECE: usize = 1 << 20;

/// Why the weights of a directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// No weights at all.
    #[error("{dir} holds no weights: wanted {SINGLE}, or {INDEX} with its shards")]
    NoWeights {
        /// The directory.
        dir: PathBuf,
    },
    /// Only weights in Python's pickle format, which runs code when read.
    #[error(
        "{file} is a pickle file, which is not read because it can run code; convert it with \
         `AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(DIR)`, which writes {SINGLE}"
    )]
    Pickle {
        /// The file.
        file: PathBuf,
    },
    /// The index of the shards is broken.
    #[error("{path} is no index of shards: {reason}")]
    Index {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The index names a file elsewhere.
    #[error("{path} names the shard `{found}`; wanted a plain file name in the same directory")]
    ShardName {
        /// The index.
        path: PathBuf,
        /// The name in it.
        found: String,
    },
    /// A file cannot be used.
    #[error(transparent)]
    File(#[from] TensorFileError),
    /// A GGUF file cannot be used.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// A student is to start from rounded numbers.
    #[error(
        "{file} is a GGUF file, whose numbers are rounded to teach and not to learn: a student starts from the \
         safetensors of the model it was made of"
    )]
    Quantised {
        /// The file.
        file: PathBuf,
    },
    /// The card that is to hold them cannot be used, or has no room for them.
    #[error("{0}")]
    Card(String),
    /// Tensors that the configuration needs and no file holds.
    #[error("{dir} lacks {count} tensors that config.json describes: {names}")]
    Missing {
        /// The directory.
        dir: PathBuf,
        /// How many.
        count: usize,
        /// The first of them.
        names: String,
    },
    /// Tensors that the configuration does not describe.
    #[error(
        "{file} holds {count} tensors that config.json does not describe: {names}; is it the \
         config.json of this model?"
    )]
    Extra {
        /// The file.
        file: PathBuf,
        /// How many.
        count: usize,
        /// The first of them.
        names: String,
    },
    /// The index says a tensor is where it is not.
    #[error("{path} says that {file} holds tensor `{tensor}`, and it does not")]
    NotInShard {
        /// The index.
        path: PathBuf,
        /// The shard.
        file: String,
        /// The tensor.
        tensor: String,
    },
    /// A tensor of the wrong shape.
    #[error("{file}: tensor `{tensor}` has shape {found:?}; config.json describes {wanted:?}")]
    Shape {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its shape in the file.
        found: Vec<usize>,
        /// The shape the configuration describes.
        wanted: Vec<usize>,
    },
    /// `lm_head.weight` beside `tie_word_embeddings: true`, and not the embedding.
    #[error(
        "{dir}: config.json ties the head to the embedding, but `lm_head.weight` differs from \
         `model.embed_tokens.weight`; set tie_word_embeddings to false, or remove one of them"
    )]
    TiedHeadDiffers {
        /// The directory.
        dir: PathBuf,
    },
    /// A type weights cannot be held in.
    #[error("weights cannot be held as {found}; accepted: f32, bf16, f16")]
    HeldType {
        /// The type asked for.
        found: String,
    },
    /// More memory than there is.
    #[error("no memory for {parameters} parameters; take a smaller model or a 16-bit type")]
    Memory {
        /// How many parameters.
        parameters: usize,
    },
    /// The device failed.
    #[error("the device could not take the weights: {0}")]
    Device(#[from] candle_core::Error),
}

/// The open files of a model and where in them each parameter lies.
pub(crate) struct StoredWeights {
    files: Vec<TensorFile>,
    /// File and tensor of every parameter, in the order of the flat tensor.
    parameters: Vec<(usize, StoredTensor)>,
}

impl StoredWeights {
    /// Opens the files of a directory, or a GGUF file, and checks them against the configuration.
    pub(crate) fn open(
        place: &Path,
        config: &Qwen3Config,
        index: &ParameterIndex,
    ) -> Result<Self, WeightsError> {
        let found = match is_gguf(place) {
            true => Shards::of(gguf::open(place, config)?),
            false => Shards::open(place)?,
        };
        let mut parameters = Vec::with_capacity(index.parameters().len());
        let mut missing = Vec::new();
        for wanted in index.parameters() {
            let Some(&at) = found.places.get(&wanted.name) else {
                missing.push(wanted.name.as_str());
                continue;
            };
            let file = &found.files[at];
            let Some(tensor) = file.tensor(&wanted.name)? else {
                missing.push(wanted.name.as_str());
                continue;
            };
            if tensor.shape != wanted.shape {
                return Err(WeightsError::Shape {
                    file: file.path().to_owned(),
                    tensor: wanted.name.clone(),
                    found: tensor.shape,
                    wanted: wanted.shape.clone(),
                });
            }
            parameters.push((at, tensor));
        }
        if !missing.is_empty() {
            return Err(WeightsError::Missing {
                dir: place.to_owned(),
                count: missing.len(),
                names: list(&missing),
            });
        }
        found.refuse_extras(config, index)?;
        found.check_tied_head(place, config)?;
        Ok(Self { files: found.files, parameters })
    }

    /// File and tensor of the parameter at a place of the index.
    pub(crate) fn get(&self, at: usize) -> (&TensorFile, &StoredTensor) {
        let (file, tensor) = &self.parameters[at];
        (&self.files[*file], tensor)
    }
}

/// Whether weights in this place are a GGUF file; if not they are a directory's.
pub fn is_gguf(place: &Path) -> bool {
    place.is_file()
}

#[derive(Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

/// The files of a directory, before anything is asked of them.
struct Shards {
    files: Vec<TensorFile>,
    /// Which file holds the tensor of a name.
    places: BTreeMap<String, usize>,
}

impl Shards {
    /// One file that holds all.
    fn of(file: TensorFile) -> Self {
        let places = file.names().map(|name| (name.to_owned(), 0)).collect();
        Self { files: vec![file], places }
    }

    fn open(dir: &Path) -> Result<Self, WeightsError> {
        // The order of `transformers`: a single file wins over shards.
        if dir.join(SINGLE).exists() {
            return Ok(Self::of(TensorFile::open(&dir.join(SINGLE))?));
        }
        if dir.join(INDEX).exists() {
            return Self::open_index(dir, &dir.join(INDEX));
        }
        Err(match find_pickle(dir) {
            Some(file) => WeightsError::Pickle { file },
            None => WeightsError::NoWeights { dir: dir.to_owned() },
        })
    }

    fn open_index(dir: &Path, path: &Path) -> Result<Self, WeightsError> {
        let invalid = |reason| WeightsError::Index { path: path.to_owned(), reason };
        let text = std::fs::read(path).map_err(|error| invalid(error.to_string()))?;
        let index: ShardIndex =
            serde_json::from_slice(&text).map_err(|error| invalid(error.to_string()))?;
        let mut files: Vec<TensorFile> = Vec::new();
        let mut numbers: BTreeMap<&str, usize> = BTreeMap::new();
        let mut places = BTreeMap::new();
        for (tensor, name) in &index.weight_map {
            if !is_plain_name(name) {
                return Err(WeightsError::ShardName { path: path.to_owned(), found: name.clone() });
            }
            let number = match numbers.get(name.as_str()) {
                Some(&number) => number,
                None => {
                    files.push(TensorFile::open(&dir.join(name))?);
                    numbers.insert(name, files.len() - 1);
                    files.len() - 1
                }
            };
            if !files[number].contains(tensor) {
                return Err(WeightsError::NotInShard {
                    path: path.to_owned(),
                    file: name.clone(),
                    tensor: tensor.clone(),
                });
            }
            places.insert(tensor.clone(), number);
        }
        Ok(Self { files, places })
    }

    /// Every tensor of every file is a parameter, and in the file the index says.
    fn refuse_extras(
        &self,
        config: &Qwen3Config,
        index: &ParameterIndex,
    ) -> Result<(), WeightsError> {
        for (number, file) in self.files.iter().enumerate() {
            let expected = |name: &str| {
                self.places.get(name) == Some(&number)
                    && (index.get(name).is_some()
                        || (config.tie_word_embeddings && name == "lm_head.weight"))
            };
            let extra: Vec<&str> =
                file.names().filter(|name| !expected(name) && !is_rotary_buffer(name)).collect();
            if !extra.is_empty() {
                return Err(WeightsError::Extra {
                    file: file.path().to_owned(),
                    count: extra.len(),
                    names: list(&extra),
                });
            }
        }
        Ok(())
    }

    /// A head stored beside the embedding it is tied to must be the same bytes.
    fn check_tied_head(&self, dir: &Path, config: &Qwen3Config) -> Result<(), WeightsError> {
        let place = |name: &str| self.places.get(name).map(|&at| &self.files[at]);
        let (Some(head_file), Some(embedding_file)) =
            (place("lm_head.weight"), place("model.embed_tokens.weight"))
        else {
            return Ok(());
        };
        if !config.tie_word_embeddings {
            return Ok(());
        }
        let head = head_file.tensor("lm_head.weight")?;
        let embedding = embedding_file.tensor("model.embed_tokens.weight")?;
        let (Some(head), Some(embedding)) = (head, embedding) else { return Ok(()) };
        let differs = || WeightsError::TiedHeadDiffers { dir: dir.to_owned() };
        if head.dtype != embedding.dtype || head.shape != embedding.shape {
            return Err(differs());
        }
        let (mut left, mut right) = (vec![0; PIECE], vec![0; PIECE]);
        for first in (0..head.bytes()).step_by(PIECE) {
            let piece = PIECE.min(head.bytes() - first);
            head_file.read_bytes(&head, first as u64, &mut left[..piece])?;
            embedding_file.read_bytes(&embedding, first as u64, &mut right[..piece])?;
            if left[..piece] != right[..piece] {
                return Err(differs());
            }
        }
        Ok(())
    }
}

/// A name of one ordinary component: `model-00001-of-00002.safetensors`, not `../x` or `/x`.
fn is_plain_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!((parts.next(), parts.next()), (Some(Component::Normal(only)), None) if only == name)
}

/// Tables that old versions of `transformers` saved and every version computes anew.
fn is_rotary_buffer(name: &str) -> bool {
    name.ends_with("rotary_emb.inv_freq")
}

fn find_pickle(dir: &Path) -> Option<PathBuf> {
    let pickled = |path: &PathBuf| {
        let extension = path.extension().and_then(|extension| extension.to_str());
        matches!(extension, Some("bin" | "pt" | "pth" | "ckpt" | "pkl"))
    };
    let mut found: Vec<PathBuf> =
        std::fs::read_dir(dir).ok()?.flatten().map(|entry| entry.path()).filter(pickled).collect();
    found.sort();
    found.into_iter().next()
}

fn list(names: &[&str]) -> String {
    let shown = names.iter().take(NAMES_SHOWN).copied().collect::<Vec<_>>().join(", ");
    if names.len() > NAMES_SHOWN { format!("{shown}, …") } else { shown }
}

#[cfg(test)]
#[path = "load_tests.rs"]
mod tests;
