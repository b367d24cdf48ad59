//! From text to typed values, with every fault collected.

use std::fmt::Display;
use std::ops::RangeBounds;
use std::str::FromStr;

use super::kinds::Choice;
use super::layers::{Layers, spoken};

/// Reads options one after another and remembers what was wrong.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    layers: &'a Layers,
    faults: Vec<String>,
}

impl<'a> Reader<'a> {
    /// A reader over what was written.
    pub(super) fn new(layers: &'a Layers) -> Self {
        Self { layers, faults: Vec::new() }
    }

    /// Notes a fault.
    pub(super) fn fault(&mut self, fault: impl Into<String>) {
        self.faults.push(fault.into());
    }

    /// The value, or every fault met on the way to it.
    pub(super) fn finish<T>(self, value: T) -> Result<T, Vec<String>> {
        if self.faults.is_empty() { Ok(value) } else { Err(self.faults) }
    }

    /// The text of an option, None where there is none.
    pub(super) fn text(&self, name: &str) -> Option<String> {
        self.layers.get(name).map(|w| w.text.clone()).filter(|text| !text.is_empty())
    }

    /// The text of an option that must be there.
    pub(super) fn required(&mut self, name: &str, what: &str) -> String {
        self.text(name).unwrap_or_else(|| {
            let key = name.replace('-', "_");
            let variable = format!("STUDENT_TRAINER_{}", key.to_uppercase());
            self.fault(format!(
                "--{name} is missing ({what}); it may also stand in {variable} or, as `{key}`, in \
                 the --config file"
            ));
            String::new()
        })
    }

    /// A number with a default, in a range.
    pub(super) fn number<T>(&mut self, name: &str, range: impl RangeBounds<T>, wanted: &str) -> T
    where
        T: FromStr + PartialOrd + Default,
    {
        self.optional_number(name, range, wanted).unwrap_or_default()
    }

    /// A number, None where there is none.
    pub(super) fn optional_number<T>(
        &mut self,
        name: &str,
        range: impl RangeBounds<T>,
        wanted: &str,
    ) -> Option<T>
    where
        T: FromStr + PartialOrd,
    {
        self.parse(name, wanted, |text| {
            text.replace('_', "").parse::<T>().ok().filter(|number| range.contains(number))
        })
    }

    /// A choice among words.
    pub(super) fn choice<T: Choice + Default>(&mut self, name: &str) -> T {
        let words: Vec<_> = T::WORDS.iter().map(|(word, _)| *word).collect();
        let wanted = format!("one of {}", words.join(", "));
        self.parse(name, &wanted, T::from_word).unwrap_or_default()
    }

    /// Yes or no.
    pub(super) fn switch(&mut self, name: &str) -> bool {
        self.parse(name, "true or false", |text| match text.to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" | "on" => Some(true),
            "false" | "0" | "no" | "off" => Some(false),
            _ => None,
        })
        .unwrap_or_default()
    }

    /// Any other value.
    pub(super) fn parse<T>(
        &mut self,
        name: &str,
        wanted: &(impl Display + ?Sized),
        read: impl Fn(&str) -> Option<T>,
    ) -> Option<T> {
        let written = self.layers.get(name)?;
        let value = read(&written.text);
        if value.is_none() {
            let place = spoken(name, &written.origin);
            self.fault(format!("{place} is `{}`; wanted: {wanted}", written.text));
        }
        value
    }

    /// What was written where.
    pub(super) fn layers(&self) -> &'a Layers {
        self.layers
    }
}
