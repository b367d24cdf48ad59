//! `report.html`: what a run did, on one page that needs nothing else: no script, no font, no
//! picture from anywhere. Light or dark as the reader's system is.

mod chart;
mod run;

use std::fmt::Write;

pub(crate) use chart::{Chart, Line, Series, smoothed};
pub(crate) use run::of_run;

use crate::table::Table;

/// A page.
#[derive(Clone, Debug, Default)]
pub(crate) struct Report {
    /// Heading.
    pub(crate) title: String,
    /// One or two sentences under it.
    pub(crate) lead: String,
    /// The few numbers that matter: value, unit or name, remark.
    pub(crate) tiles: Vec<Tile>,
    /// Tables, each with a heading and a sentence.
    pub(crate) tables: Vec<(String, String, Table)>,
    /// Charts.
    pub(crate) charts: Vec<Chart>,
    /// Answers of several models to a prompt.
    pub(crate) samples: Vec<Sample>,
    /// Facts of the run: name and value.
    pub(crate) facts: Vec<(String, String)>,
    /// The resolved configuration.
    pub(crate) config: serde_json::Value,
}

/// A number that matters.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tile {
    /// What it is.
    pub(crate) name: String,
    /// The number.
    pub(crate) value: String,
    /// What to compare it with.
    pub(crate) remark: String,
}

/// One prompt and what was answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sample {
    /// The prompt.
    pub(crate) prompt: String,
    /// Who answered, and what.
    pub(crate) answers: Vec<(String, String)>,
}

impl Report {
    /// The page.
    pub(crate) fn to_html(&self) -> String {
        let mut body = String::new();
        let title = escape(&self.title);
        push(&mut body, format_args!("<h1>{title}</h1>\n"));
        push(&mut body, format_args!("<p class=\"lead\">{}</p>\n", escape(&self.lead)));
        self.push_tiles(&mut body);
        for (heading, remark, table) in self.tables.iter().filter(|(_, _, t)| !t.rows.is_empty()) {
            push(&mut body, format_args!("<h2>{}</h2>\n", escape(heading)));
            if !remark.is_empty() {
                push(&mut body, format_args!("<p>{}</p>\n", escape(remark)));
            }
            push(&mut body, format_args!("<div class=\"wide\">{}</div>\n", table.to_html()));
        }
        let charts: String = self.charts.iter().filter_map(Chart::to_html).collect();
        if !charts.is_empty() {
            push(
                &mut body,
                format_args!("<h2>Curves</h2>\n<div class=\"charts\">{charts}</div>\n"),
            );
        }
        self.push_samples(&mut body);
        self.push_facts(&mut body);
        let style = include_str!("report/style.css");
        format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <meta name=\"color-scheme\" content=\"light dark\">\n<title>{title}</title>\n\
             <style>\n{style}</style>\n</head>\n<body>\n<main>\n{body}</main>\n</body>\n</html>\n"
        )
    }

    fn push_tiles(&self, body: &mut String) {
        if self.tiles.is_empty() {
            return;
        }
        body.push_str("<div class=\"tiles\">\n");
        for tile in &self.tiles {
            let [name, value, remark] = [&tile.name, &tile.value, &tile.remark].map(|t| escape(t));
            push(
                body,
                format_args!(
                    "<div class=\"tile\"><div class=\"name\">{name}</div>\
                     <div class=\"value\">{value}</div><div class=\"remark\">{remark}</div></div>\n"
                ),
            );
        }
        body.push_str("</div>\n");
    }

    fn push_samples(&self, body: &mut String) {
        if self.samples.is_empty() {
            return;
        }
        body.push_str("<h2>Sampled answers</h2>\n");
        for sample in &self.samples {
            let prompt = escape(&sample.prompt);
            push(
                body,
                format_args!("<div class=\"sample\"><p class=\"prompt\">{prompt}</p>\n<dl>\n"),
            );
            for (who, text) in &sample.answers {
                let (who, text) = (escape(who), escape(text));
                push(body, format_args!("<dt>{who}</dt><dd>{text}</dd>\n"));
            }
            body.push_str("</dl></div>\n");
        }
    }

    fn push_facts(&self, body: &mut String) {
        body.push_str("<h2>The run</h2>\n<dl class=\"facts\">\n");
        for (name, value) in &self.facts {
            let (name, value) = (escape(name), escape(value));
            push(body, format_args!("<dt>{name}</dt><dd>{value}</dd>\n"));
        }
        body.push_str("</dl>\n");
        if !self.config.is_null() {
            let config = serde_json::to_string_pretty(&self.config).unwrap_or_default();
            let config = escape(&config);
            let summary = "<summary>Configuration</summary>";
            push(body, format_args!("<details>{summary}<pre>{config}</pre></details>\n"));
        }
    }
}

/// Text that is safe within HTML, attributes included.
pub(crate) fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            other => safe.push(other),
        }
    }
    safe
}

/// Appends to a string, which cannot fail.
fn push(body: &mut String, text: std::fmt::Arguments<'_>) {
    let _ = body.write_fmt(text);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page() -> Report {
        let line = Line { points: vec![(0.0, 3.0), (1.0, 2.0), (2.0, 1.5)], ..Line::default() };
        let chart = Chart {
            title: "Loss <b>".into(),
            series: vec![Series { name: "a & b".into(), lines: vec![line] }],
            ..Chart::default()
        };
        let mut table = Table::new(["", "perplexity"]);
        table.row(["<teacher>".into(), "8.25".into()]);
        Report {
            title: "Run <1>".into(),
            lead: "lead".into(),
            tiles: vec![Tile { value: "42".into(), ..Tile::default() }],
            tables: vec![("Result".into(), String::new(), table)],
            charts: vec![chart],
            samples: vec![Sample {
                prompt: "2 < 3?".into(),
                answers: vec![("student".into(), "</dd><script>alert(1)</script>".into())],
            }],
            facts: vec![("seed".into(), "42".into())],
            config: serde_json::json!({"student": "<x>"}),
        }
    }

    #[test]
    fn nothing_of_the_page_comes_from_elsewhere() {
        let html = page().to_html();
        for foreign in ["<script", "http://", "https://", "src=", "@import", "url(", "<link"] {
            let found = html.replace("http://www.w3.org/2000/svg", "");
            assert!(!found.contains(foreign), "{foreign} in the page");
        }
        assert!(html.contains("prefers-color-scheme: dark") && html.contains("<svg"));
    }

    #[test]
    fn every_text_is_escaped_and_every_element_closed() {
        let html = page().to_html();
        for text in ["Run &lt;1&gt;", "&lt;teacher&gt;", "2 &lt; 3?", "Loss &lt;b&gt;", "a &amp; b"]
        {
            assert!(html.contains(text), "{text}");
        }
        for tag in ["main", "div", "table", "svg", "dl", "details", "figure", "section", "p"] {
            let open = html.matches(&format!("<{tag}>")).count()
                + html.matches(&format!("<{tag} ")).count();
            assert_eq!(open, html.matches(&format!("</{tag}>")).count(), "<{tag}>");
        }
    }
}
