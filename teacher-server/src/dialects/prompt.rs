//! Lists of sequences as JSON has them, read into no more memory than their bytes warrant.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Visitor};

use super::MAX_SEQUENCES;

/// Sequences of token ids.
#[derive(Clone, Debug, PartialEq)]
pub struct Sequences(pub Vec<Vec<u32>>);

/// What a completion is asked for: one sequence or text, or several.
#[derive(Clone, Debug, PartialEq)]
pub enum Prompt {
    /// One sequence of ids.
    Ids(Vec<u32>),
    /// Several.
    ManyIds(Vec<Vec<u32>>),
    /// One text.
    Text(String),
    /// Several.
    ManyTexts(Vec<String>),
}

/// An element of a list whose kind is not known before.
enum Element {
    Id(u32),
    Ids(Vec<u32>),
    Text(String),
}

impl<'de> Deserialize<'de> for Sequences {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Sequences;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of lists of token ids")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Sequences, A::Error> {
                let mut sequences = Vec::new();
                while let Some(ids) = list.next_element()? {
                    push(&mut sequences, ids)?;
                }
                Ok(Sequences(sequences))
            }
        }
        deserializer.deserialize_seq(Read)
    }
}

impl<'de> Deserialize<'de> for Prompt {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Prompt;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text, a list of token ids, or a list of either")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Prompt, E> {
                Ok(Prompt::Text(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Prompt, A::Error> {
                let first = list.next_element()?;
                let mut prompt = match first {
                    None => return Err(A::Error::custom("the list is empty")),
                    Some(Element::Id(id)) => Prompt::Ids(vec![id]),
                    Some(Element::Ids(ids)) => Prompt::ManyIds(vec![ids]),
                    Some(Element::Text(text)) => Prompt::ManyTexts(vec![text]),
                };
                while let Some(element) = list.next_element()? {
                    match (&mut prompt, element) {
                        (Prompt::Ids(ids), Element::Id(id)) => ids.push(id),
                        (Prompt::ManyIds(all), Element::Ids(ids)) => push(all, ids)?,
                        (Prompt::ManyTexts(all), Element::Text(text)) => push(all, text)?,
                        _ => return Err(A::Error::custom("the list mixes ids, lists and texts")),
                    }
                }
                Ok(prompt)
            }
        }
        deserializer.deserialize_any(Read)
    }
}

impl<'de> Deserialize<'de> for Element {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Element;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a token id, a list of them, or a text")
            }

            fn visit_u64<E: Error>(self, id: u64) -> Result<Element, E> {
                let large = |_| E::custom(format!("{id} is no token id"));
                u32::try_from(id).map(Element::Id).map_err(large)
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Element, E> {
                Ok(Element::Text(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Element, A::Error> {
                let mut ids = Vec::new();
                while let Some(id) = list.next_element()? {
                    ids.push(id);
                }
                Ok(Element::Ids(ids))
            }
        }
        deserializer.deserialize_any(Read)
    }
}

/// A sequence more: the shortest take a few bytes on the wire and many times that here.
fn push<T, E: Error>(sequences: &mut Vec<T>, sequence: T) -> Result<(), E> {
    if sequences.len() == MAX_SEQUENCES {
        return Err(E::custom(format!("more than {MAX_SEQUENCES} sequences in one request")));
    }
    sequences.push(sequence);
    Ok(())
}
