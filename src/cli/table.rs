//! Tables for a terminal.

/// Returns a table whose columns are as wide as their widest cell and two spaces apart.
pub fn render(heading: &[&str], rows: &[Vec<String>]) -> String {
    let mut layout = Layout::new(heading);
    for row in rows {
        layout.fit(row);
    }
    rows.iter().fold(layout.heading(heading), |text, row| text + &layout.line(row))
}

/// Shows rows, one after the other.
pub type Rows<'a> = dyn Fn(&mut dyn FnMut(Vec<String>)) -> anyhow::Result<()> + 'a;

/// Prints a table of rows that are read twice, once for the widths, and never held as a whole.
/// Returns how many there were.
pub fn print(heading: &[&str], rows: &Rows<'_>) -> anyhow::Result<u64> {
    let mut layout = Layout::new(heading);
    let mut count = 0;
    rows(&mut |row| {
        layout.fit(&row);
        count += 1;
    })?;
    if count > 0 {
        print!("{}", layout.heading(heading));
        rows(&mut |row| print!("{}", layout.line(&row)))?;
    }
    Ok(count)
}

/// A JSON array that is printed entry by entry.
#[derive(Default)]
pub struct JsonArray {
    count: u64,
}

impl JsonArray {
    pub fn print(&mut self, entry: &serde_json::Value) {
        print!("{}{entry}", if self.count == 0 { "[" } else { "," });
        self.count += 1;
    }

    pub fn end(self) {
        println!("{}", if self.count == 0 { "[]" } else { "]" });
    }
}

/// The widths of the columns, for a table that is not held as a whole.
pub struct Layout {
    widths: Vec<usize>,
}

impl Layout {
    pub fn new(heading: &[&str]) -> Self {
        Self { widths: heading.iter().map(|it| it.chars().count()).collect() }
    }

    /// Makes room for a row.
    pub fn fit(&mut self, row: &[String]) {
        for (width, cell) in self.widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }

    /// The heading and the line below it.
    pub fn heading(&self, heading: &[&str]) -> String {
        let heading: Vec<String> = heading.iter().map(ToString::to_string).collect();
        let rule: Vec<String> = self.widths.iter().map(|width| "─".repeat(*width)).collect();
        self.line(&heading) + &self.line(&rule)
    }

    pub fn line(&self, cells: &[String]) -> String {
        let padded = cells.iter().zip(&self.widths).map(|(cell, width)| format!("{cell:width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    }
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
