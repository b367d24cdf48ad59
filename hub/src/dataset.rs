//! Which files of a dataset repository are a split, by their names.
//!
//! The rules are those of the `datasets` library where a repository has no loading script: a
//! split's keyword as a word of the file's name or of a folder's. The `configs` of a README are
//! not read.

use std::collections::BTreeSet;

use crate::source::HubError;

/// The splits, each with the words that mean it.
const SPLITS: [(&str, &[&str]); 3] = [
    ("train", &["train", "training"]),
    ("validation", &["validation", "valid", "val", "dev"]),
    ("test", &["test", "testing", "eval", "evaluation"]),
];

/// Data files' endings, the preferred first.
const ENDINGS: [&str; 8] =
    [".parquet", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".ndjson", ".json", ".json.gz", ".json.zst"];

/// `hf://datasets/ORG/NAME[@REV][/SPLIT]`, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Spec {
    pub(crate) id: String,
    pub(crate) revision: String,
    pub(crate) split: String,
}

impl Spec {
    pub(crate) fn parse(spec: &str) -> Result<Self, HubError> {
        let bad = |reason| HubError::DatasetName { spec: spec.to_owned(), reason };
        let rest = spec.strip_prefix("hf://datasets/").ok_or_else(|| bad("another beginning"))?;
        let mut parts: Vec<&str> = rest.trim_end_matches('/').split('/').collect();
        if parts.iter().any(|part| part.is_empty()) {
            return Err(bad("an empty part"));
        }
        // The revision follows the name; the hub's own references have slashes.
        let at = parts.iter().position(|part| part.contains('@'));
        let name_at = at.unwrap_or_else(|| (parts.len() - 1).min(1));
        if name_at > 1 {
            return Err(bad("the revision must follow the name"));
        }
        let mut split = parts.split_off(name_at + 1);
        let (name, revision) = match parts[name_at].split_once('@') {
            Some((name, "refs")) => {
                let length = if split.first() == Some(&"convert") || split.first() == Some(&"pr") {
                    2
                } else {
                    0
                };
                let reference: Vec<&str> = split.drain(..length.min(split.len())).collect();
                (name, format!("refs/{}", reference.join("/")))
            }
            Some((name, revision)) => (name, revision.replace("%2F", "/")),
            None => (parts[name_at], "main".to_owned()),
        };
        let id = if name_at == 1 { format!("{}/{name}", parts[0]) } else { name.to_owned() };
        if !crate::source::is_repository_id(&id) {
            return Err(bad("ORG/NAME may have letters, digits, '-', '_' and '.' only"));
        }
        let split = if split.is_empty() { "train".to_owned() } else { split.join("/") };
        Ok(Self { id, revision, split })
    }
}

/// The files of a split, sorted: the file of exactly that name; else those whose name or folder
/// has the split's word, below the subset's folder when one is named; else, for `train`, all data
/// files of a repository in which no name tells a split. Where the same split exists in several
/// formats, Parquet goes before JSON lines.
pub(crate) fn choose(id: &str, split: &str, names: &[String]) -> Result<Vec<String>, HubError> {
    if names.iter().any(|name| name == split && ending_of(name).is_some()) {
        return Ok(vec![split.to_owned()]);
    }
    let data: Vec<DataFile<'_>> = names.iter().filter_map(|name| DataFile::new(name)).collect();
    let (subset, word) = match split.rsplit_once('/') {
        Some((subset, word)) => (Some(subset), word),
        None => (None, split),
    };
    let wanted = split_of_word(word).unwrap_or(word);
    let below = |file: &&DataFile<'_>| subset.is_none_or(|subset| file.is_below(subset));
    let of = |matches: &dyn Fn(&DataFile<'_>) -> bool| -> Vec<&DataFile<'_>> {
        data.iter().filter(below).filter(|file| matches(file)).collect()
    };
    let mut found = of(&|file| file.label.as_deref() == Some(word));
    if found.is_empty() {
        found = of(&|file| file.split.is_some_and(|split| split == wanted));
    }
    if found.is_empty() && wanted == "train" && data.iter().all(|file| file.split.is_none()) {
        found = of(&|_| true);
    }
    if found.is_empty() && split_of_word(word).is_none() {
        found = of(&|file| words(file.name).any(|own| own == word));
    }
    if found.is_empty() {
        return Err(no_split(id, split, &data));
    }
    let choices: BTreeSet<String> = found.iter().map(|file| file.choice(word)).collect();
    if choices.len() > 1 {
        let choices = choices.into_iter().collect();
        return Err(HubError::ManySubsets { id: id.to_owned(), split: split.to_owned(), choices });
    }
    let best = found.iter().map(|file| file.format).min();
    let mut chosen: Vec<String> = found
        .iter()
        .filter(|file| Some(file.format) == best)
        .map(|file| file.name.to_owned())
        .collect();
    chosen.sort();
    Ok(chosen)
}

fn no_split(id: &str, split: &str, data: &[DataFile<'_>]) -> HubError {
    let splits: BTreeSet<String> =
        data.iter().filter_map(|file| file.split.map(|split| file.choice(split))).collect();
    HubError::NoSplit {
        id: id.to_owned(),
        split: split.to_owned(),
        splits: splits.into_iter().collect(),
        files: data.iter().map(|file| file.name.to_owned()).collect(),
    }
}

/// A file that may hold rows.
struct DataFile<'a> {
    name: &'a str,
    /// Index in [`ENDINGS`].
    format: usize,
    /// The split its name or folder tells.
    split: Option<&'static str>,
    /// The split's word as the file's name goes on from it: `train_sft`.
    label: Option<String>,
    /// Its folders but those that name the split or are called `data`.
    subset: String,
}

impl<'a> DataFile<'a> {
    fn new(name: &'a str) -> Option<Self> {
        let format = ending_of(name)?;
        let (folders, file) = name.rsplit_once('/').unwrap_or(("", name));
        let stem = &file[..file.len() - ENDINGS[format].len()];
        let of_file = split_in(stem);
        // Descriptions are JSON too.
        let description = ENDINGS[format].starts_with(".json") && !ENDINGS[format].contains('l');
        if name.split('/').any(|part| part.starts_with('.'))
            || (description && of_file.is_none() && split_in(folders).is_none())
        {
            return None;
        }
        let folders = folders.split('/').filter(|folder| !folder.is_empty());
        let (of_folder, other): (Vec<&str>, Vec<&str>) =
            folders.partition(|folder| split_of_word(folder).is_some() || *folder == "data");
        let split = of_file.or_else(|| of_folder.into_iter().find_map(split_of_word));
        Some(Self { name, format, split, label: label_in(stem), subset: other.join("/") })
    }

    /// What to ask for to get this file, when `split` alone does not tell.
    fn choice(&self, split: &str) -> String {
        let split = self.label.as_deref().unwrap_or(split);
        let subset = &self.subset;
        if subset.is_empty() { split.to_owned() } else { format!("{subset}/{split}") }
    }

    fn is_below(&self, subset: &str) -> bool {
        self.subset == subset || self.name.strip_prefix(subset).is_some_and(|r| r.starts_with('/'))
    }
}

fn ending_of(name: &str) -> Option<usize> {
    ENDINGS.iter().position(|ending| name.to_lowercase().ends_with(ending))
}

/// The split a name tells by one of its words.
fn split_in(name: &str) -> Option<&'static str> {
    words(name).find_map(split_of_word)
}

/// The split's word in a file's name, and what is joined to it by `_`.
fn label_in(stem: &str) -> Option<String> {
    let joined = stem.split(|c: char| !c.is_alphabetic() && c != '_');
    let of_run = |run: &str| {
        let parts: Vec<&str> = run.split('_').filter(|part| !part.is_empty()).collect();
        let at = parts.iter().position(|part| split_of_word(part).is_some())?;
        Some(parts[at..].join("_"))
    };
    joined.filter_map(of_run).next()
}

fn words(name: &str) -> impl Iterator<Item = &str> {
    name.split(|c: char| !c.is_alphabetic()).filter(|word| !word.is_empty())
}

fn split_of_word(word: &str) -> Option<&'static str> {
    let word = word.to_lowercase();
    let known = SPLITS.iter().find(|(_, words)| words.contains(&word.as_str()));
    known.map(|&(split, _)| split)
}

#[cfg(test)]
#[path = "dataset_tests.rs"]
mod tests;
