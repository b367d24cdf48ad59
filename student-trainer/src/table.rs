//! Plain tables: aligned for a terminal, or as HTML rows for a report.

use student_trainer::observer::TeacherLine;

use crate::report::escape;

/// A table of text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Table {
    /// Column headings.
    pub(crate) head: Vec<String>,
    /// Rows, as wide as the headings.
    pub(crate) rows: Vec<Vec<String>>,
}

impl Table {
    /// A table without rows.
    pub(crate) fn new<const N: usize>(head: [&str; N]) -> Self {
        Self { head: head.map(str::to_owned).to_vec(), rows: Vec::new() }
    }

    /// Adds a row.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let mut cells: Vec<_> = cells.into_iter().collect();
        cells.resize(self.head.len(), String::new());
        self.rows.push(cells);
    }

    /// As lines of text: the first column left, the others right aligned.
    pub(crate) fn to_text(&self) -> String {
        let width = |column: usize| {
            let cells = self.rows.iter().map(|row| row[column].as_str());
            cells.chain([self.head[column].as_str()]).map(|c| c.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<_> = (0..self.head.len()).map(width).collect();
        let line = |cells: &[String]| {
            let padded: Vec<_> = cells
                .iter()
                .zip(&widths)
                .enumerate()
                .map(|(column, (cell, &width))| match column {
                    0 => format!("{cell:<width$}"),
                    _ => format!("{cell:>width$}"),
                })
                .collect();
            format!("  {}\n", padded.join("   ").trim_end())
        };
        let rule = widths.iter().sum::<usize>() + 3 * widths.len().saturating_sub(1);
        let rows: String = self.rows.iter().map(|row| line(row)).collect();
        format!("{}  {}\n{rows}", line(&self.head), "-".repeat(rule))
    }

    /// As an HTML table.
    pub(crate) fn to_html(&self) -> String {
        let head: String = self.head.iter().map(|c| format!("<th>{}</th>", escape(c))).collect();
        let row = |cells: &Vec<String>| {
            let cells = cells.iter().enumerate().map(|(column, cell)| match column {
                0 => format!("<th scope=\"row\">{}</th>", escape(cell)),
                _ => format!("<td>{}</td>", escape(cell)),
            });
            format!("<tr>{}</tr>\n", cells.collect::<String>())
        };
        let body: String = self.rows.iter().map(row).collect();
        format!("<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table>\n")
    }
}

/// A number as people read it: four significant digits, thousands in groups.
pub(crate) fn number(value: f64) -> String {
    if !value.is_finite() {
        return value.to_string();
    }
    let size = value.abs();
    match size {
        _ if size >= 1000.0 => grouped(value.round() as i64),
        _ if size >= 100.0 => format!("{value:.1}"),
        _ if size >= 10.0 => format!("{value:.2}"),
        _ if size >= 1.0 => format!("{value:.3}"),
        _ if size >= 0.001 || size == 0.0 => format!("{value:.4}"),
        _ => format!("{value:.2e}"),
    }
}

/// A number that may not be known.
pub(crate) fn maybe(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), number)
}

/// A share as per cent.
pub(crate) fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| "-".to_owned(), |share| format!("{:.1} %", 100.0 * share))
}

/// A whole number with its thousands apart.
pub(crate) fn grouped(value: i64) -> String {
    let digits = value.unsigned_abs().to_string();
    let groups: Vec<_> = digits
        .as_bytes()
        .rchunks(3)
        .rev()
        .map(|group| group.iter().map(|&b| char::from(b)).collect::<String>())
        .collect();
    format!("{}{}", if value < 0 { "-" } else { "" }, groups.join(","))
}

/// A number of things, such as parameters, in a few characters.
pub(crate) fn short(count: u64) -> String {
    match count {
        0..1_000 => count.to_string(),
        1_000..1_000_000 => format!("{:.1} K", count as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} M", count as f64 / 1e6),
        _ => format!("{:.2} B", count as f64 / 1e9),
    }
}

/// A teacher's size, type and device; the device alone where it does not state the others, and none where
/// only its answers are there.
pub(crate) fn machine(teacher: &TeacherLine) -> String {
    let TeacherLine { parameters, dtype, device, .. } = teacher;
    match (parameters, device.as_str()) {
        (0, device) => device.to_owned(),
        (&size, "") => format!("{} parameters, {dtype}", short(size)),
        (&size, device) => format!("{} parameters, {dtype} on {device}", short(size)),
    }
}

/// A duration in seconds as people say it.
pub(crate) fn duration(seconds: f64) -> String {
    let whole = seconds.max(0.0).round() as u64;
    match whole {
        _ if seconds < 9.95 => format!("{:.1} s", seconds.max(0.0)),
        0..60 => format!("{whole} s"),
        60..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(["", "perplexity", "KL"]);
        table.row(["teacher".into(), "8.25".into()]);
        table.row(["student before".into(), "1,234".into(), "0.5".into()]);
        let wanted = "                   perplexity    KL\n  \
                      ---------------------------------\n  \
                      teacher                8.25\n  \
                      student before        1,234   0.5\n";
        assert_eq!(table.to_text(), wanted);
    }

    #[test]
    fn cells_are_escaped_in_html() {
        let mut table = Table::new(["a<b"]);
        table.row(["<script>".into()]);
        let html = table.to_html();
        assert!(html.contains("a&lt;b") && html.contains("&lt;script&gt;"), "{html}");
    }

    #[test]
    fn numbers_are_short() {
        let cases = [(1234567.0, "1,234,567"), (123.456, "123.5"), (42.666, "42.67")];
        cases.iter().for_each(|&(value, text)| assert_eq!(number(value), text));
        assert_eq!((number(0.00005), number(0.0)), ("5.00e-5".into(), "0.0000".into()));
        assert_eq!((short(596_049_920), short(4_022_468_096)), ("596.0 M".into(), "4.02 B".into()));
        assert_eq!(duration(9.96), "10 s");
        assert_eq!((duration(3.21), duration(75.0)), ("3.2 s".into(), "1 min 15 s".into()));
        assert_eq!(grouped(-1_000), "-1,000");
    }
}
