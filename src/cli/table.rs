//! Small tables for a terminal.

/// Columns as wide as their widest cell, two spaces apart; the last is not padded.
pub fn render(heading: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([heading[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..heading.len()).map(width).collect();
    let line = |cells: &[String]| {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    let heading: Vec<String> = heading.iter().map(ToString::to_string).collect();
    let mut text = line(&heading);
    text.push_str(&line(&widths.iter().map(|width| "─".repeat(*width)).collect::<Vec<_>>()));
    for row in rows {
        text.push_str(&line(row));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align() {
        let text =
            render(&["a", "bb"], &[vec!["äöü".into(), "1".into()], vec!["x".into(), "22".into()]]);
        assert_eq!(text, "a    bb\n───  ──\näöü  1\nx    22\n");
    }
}
