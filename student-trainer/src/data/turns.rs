//! Which part of a row's text is the answer.

use std::ops::Range;

use hub::chat::{ChatTemplate, Message};

use super::error::{DataError, Place};

/// The text of a row and the bytes of it that are learned, ascending.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MarkedText {
    /// The whole text.
    pub text: String,
    /// Byte ranges of the answers.
    pub answers: Vec<Range<usize>>,
}

impl MarkedText {
    /// A text that is learned as a whole.
    pub fn whole(text: String) -> Self {
        let end = text.len();
        Self { text, answers: std::iter::once(0..end).collect() }
    }

    /// A prompt and what follows it.
    pub fn completion(prompt: &str, completion: &str) -> Self {
        let text = format!("{prompt}{completion}");
        let end = text.len();
        Self { text, answers: std::iter::once(prompt.len()..end).collect() }
    }

    /// The plain form of a conversation, without any template: a line `Instruction: …` for the
    /// user, `Response: …` for the assistant, `System: …` for the system, in turn and nothing
    /// after the last. An answer is what follows `Response: `.
    pub fn plain(messages: &[Message]) -> Self {
        let mut marked = Self { text: String::new(), answers: Vec::new() };
        for (i, message) in messages.iter().enumerate() {
            let label = match message.role.as_str() {
                "user" => "Instruction",
                "assistant" => "Response",
                "system" => "System",
                other => other,
            };
            let newline = if i > 0 { "\n" } else { "" };
            marked.text.push_str(&format!("{newline}{label}: "));
            let start = marked.text.len();
            marked.text.push_str(&message.content);
            if message.role == "assistant" {
                marked.answers.push(start..marked.text.len());
            }
        }
        marked
    }

    /// A conversation as the model's template writes it. An answer is an assistant's turn from
    /// where its generation would begin to its closing token, without the white space after that.
    ///
    /// Both ends come from the template itself: what it writes for the messages before a turn,
    /// with a generation prompt, ends where the turn begins; what it writes up to and including
    /// the turn ends where the turn ends. Each must be the beginning of the whole text. Templates
    /// that write a last turn differently (Qwen3's puts an empty `<think>` before it) fail the
    /// second condition in the turns before the last; there the turn ends with the first
    /// `closing` token (the tokenizer's end of sequence) before the next answer.
    ///
    /// # Errors
    /// [`DataError::Chat`] when the template fails, [`DataError::Turns`] when an end cannot be
    /// told.
    pub fn templated(
        template: &ChatTemplate,
        messages: &[Message],
        closing: Option<&str>,
        place: &Place,
    ) -> Result<Self, DataError> {
        let render = |messages: &[Message], prompt| {
            template
                .render(messages, prompt)
                .map_err(|source| DataError::Chat { place: place.clone(), source })
        };
        let text = render(messages, false)?;
        let unclear = |i: usize| DataError::Turns {
            place: place.clone(),
            template: template.file().to_owned(),
            message: i + 1,
        };
        let answering = |&i: &usize| messages[i].role == "assistant";
        let mut starts = Vec::new();
        for i in (0..messages.len()).filter(answering) {
            let before = render(&messages[..i], true)?;
            if !text.starts_with(&before) {
                return Err(unclear(i));
            }
            starts.push((i, before.len()));
        }
        let mut answers = Vec::new();
        for (n, &(i, start)) in starts.iter().enumerate() {
            let next = starts.get(n + 1).map_or(text.len(), |&(_, next)| next);
            let through = render(&messages[..=i], false)?;
            let end = if text.starts_with(&through) {
                through.trim_end().len()
            } else {
                let turn = text.get(start..next).ok_or_else(|| unclear(i))?;
                let closed = closing.and_then(|token| Some(turn.find(token)? + token.len()));
                start + closed.ok_or_else(|| unclear(i))?
            };
            answers.push(start..end.max(start));
        }
        Ok(Self { text, answers })
    }

    /// For each token, given the bytes it stands for, whether it carries a byte of an answer.
    pub fn mask(&self, offsets: &[(usize, usize)]) -> Vec<bool> {
        let carries = |&(start, end): &(usize, usize)| {
            let from = self.answers.partition_point(|answer| answer.end <= start);
            self.answers.get(from).is_some_and(|answer| answer.start < end && start < end)
        };
        offsets.iter().map(carries).collect()
    }
}
