//! A spreadsheet workbook (Office Open XML, `.xlsx`): sheets of texts, whole numbers, dates and times.
//!
//! Invariants: a text is a text (an inline string), never a formula; dates are dates and times are
//! times, whatever the language of the reader. What XML cannot hold is replaced. Rows are compressed
//! as they come: held at a time are the compressed bytes, not the cells.
//!
//! Own code, because a record needs four kinds of cells and no more (`docs/decisions/0044`).

use std::fmt::Write as _;
use std::io::{self, Cursor, Write as _};

use jiff::civil::{Date, DateTime, Time};
use zip::write::{SimpleFileOptions, ZipWriter};

/// The media type of a workbook.
pub const MEDIA_TYPE: &str = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet";

/// Rows of one sheet, by the format.
const ROWS_MAX: u32 = 1_048_576;
/// Sheets of one workbook: a bound of ours. More cannot be found by their tabs.
pub const SHEETS_MAX: usize = 200;
/// Characters of a sheet's title, by the format.
const TITLE_LENGTH_MAX: usize = 31;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Cell<'a> {
    Empty,
    Text(&'a str),
    Whole(i64),
    Date(Date),
    Time(Time),
    DateTime(DateTime),
}

/// The numbers of `cellXfs` in `STYLES`.
const HEADING: u8 = 1;
const DATE: u8 = 2;
const TIME: u8 = 3;
const DATE_TIME: u8 = 4;

/// Built-in formats, which readers show in their own language: 14 is a date, 21 a time, 22 both.
const STYLES: &str = r#"<styleSheet xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"><fonts count="2"><font><sz val="11"/><name val="Calibri"/></font><font><b/><sz val="11"/><name val="Calibri"/></font></fonts><fills count="2"><fill><patternFill patternType="none"/></fill><fill><patternFill patternType="gray125"/></fill></fills><borders count="1"><border><left/><right/><top/><bottom/><diagonal/></border></borders><cellStyleXfs count="1"><xf numFmtId="0" fontId="0" fillId="0" borderId="0"/></cellStyleXfs><cellXfs count="5"><xf numFmtId="0" fontId="0" fillId="0" borderId="0" xfId="0"/><xf numFmtId="0" fontId="1" fillId="0" borderId="0" xfId="0" applyFont="1"/><xf numFmtId="14" fontId="0" fillId="0" borderId="0" xfId="0" applyNumberFormat="1"/><xf numFmtId="21" fontId="0" fillId="0" borderId="0" xfId="0" applyNumberFormat="1"/><xf numFmtId="22" fontId="0" fillId="0" borderId="0" xfId="0" applyNumberFormat="1"/></cellXfs><cellStyles count="1"><cellStyle name="Normal" xfId="0" builtinId="0"/></cellStyles></styleSheet>"#;

const DECLARATION: &str = r#"<?xml version="1.0" encoding="UTF-8" standalone="yes"?>"#;
const MAIN: &str = "http://schemas.openxmlformats.org/spreadsheetml/2006/main";
const RELATIONS: &str = "http://schemas.openxmlformats.org/officeDocument/2006/relationships";
const PACKAGE: &str = "http://schemas.openxmlformats.org/package/2006";

/// A workbook that is being written, in memory.
pub struct Workbook {
    zip: ZipWriter<Cursor<Vec<u8>>>,
    titles: Vec<String>,
    /// Of the sheet that is being written.
    rows: u32,
}

impl Workbook {
    pub fn new() -> Self {
        Self { zip: ZipWriter::new(Cursor::new(Vec::new())), titles: Vec::new(), rows: 0 }
    }

    /// Begins a sheet with a heading of these columns and their widths in characters. The title is
    /// changed where the format does not allow it, or another sheet has it.
    pub fn begin_sheet(&mut self, title: &str, columns: &[(&str, u8)]) -> io::Result<()> {
        self.end_sheet()?;
        if self.titles.len() >= SHEETS_MAX {
            return Err(io::Error::other("a workbook has too many sheets"));
        }
        let title = self.free_title(title);
        self.titles.push(title);
        self.begin_part(&format!("xl/worksheets/sheet{}.xml", self.titles.len()))?;
        let mut text = format!(
            "{DECLARATION}<worksheet xmlns=\"{MAIN}\"><sheetViews><sheetView workbookViewId=\"0\">\
             <pane ySplit=\"1\" topLeftCell=\"A2\" activePane=\"bottomLeft\" state=\"frozen\"/>\
             </sheetView></sheetViews><cols>"
        );
        for (at, (_, width)) in columns.iter().enumerate() {
            let number = at + 1;
            write!(
                text,
                "<col min=\"{number}\" max=\"{number}\" width=\"{width}\" customWidth=\"1\"/>"
            )
            .ok();
        }
        text.push_str("</cols><sheetData>");
        self.zip.write_all(text.as_bytes())?;
        self.rows = 0;
        let heading: Vec<Cell<'_>> = columns.iter().map(|it| Cell::Text(it.0)).collect();
        self.write_row(&heading, HEADING)
    }

    pub fn row(&mut self, cells: &[Cell<'_>]) -> io::Result<()> {
        self.write_row(cells, 0)
    }

    fn write_row(&mut self, cells: &[Cell<'_>], text_style: u8) -> io::Result<()> {
        if self.rows >= ROWS_MAX {
            return Err(io::Error::other("a sheet has too many rows"));
        }
        self.rows += 1;
        let mut text = format!("<row r=\"{}\">", self.rows);
        for (at, cell) in cells.iter().enumerate() {
            let place = format!("{}{}", column(at), self.rows);
            push_cell(&mut text, &place, *cell, text_style);
        }
        text.push_str("</row>");
        self.zip.write_all(text.as_bytes())
    }

    fn end_sheet(&mut self) -> io::Result<()> {
        if self.titles.is_empty() {
            return Ok(());
        }
        self.zip.write_all(b"</sheetData></worksheet>")
    }

    /// Returns the bytes of the file.
    pub fn finish(mut self) -> io::Result<Vec<u8>> {
        self.end_sheet()?;
        let parts = [
            ("xl/workbook.xml", self.workbook()),
            ("xl/_rels/workbook.xml.rels", self.workbook_relations()),
            ("xl/styles.xml", format!("{DECLARATION}{STYLES}")),
            ("[Content_Types].xml", self.content_types()),
            (
                "_rels/.rels",
                format!(
                    "{DECLARATION}<Relationships xmlns=\"{PACKAGE}/relationships\"><Relationship Id=\"rId1\" \
                     Type=\"{RELATIONS}/officeDocument\" Target=\"xl/workbook.xml\"/></Relationships>"
                ),
            ),
        ];
        for (name, text) in parts {
            self.begin_part(name)?;
            self.zip.write_all(text.as_bytes())?;
        }
        Ok(self.zip.finish().map_err(io::Error::other)?.into_inner())
    }

    fn begin_part(&mut self, name: &str) -> io::Result<()> {
        self.zip.start_file(name, SimpleFileOptions::default()).map_err(io::Error::other)
    }

    fn workbook(&self) -> String {
        let mut text =
            format!("{DECLARATION}<workbook xmlns=\"{MAIN}\" xmlns:r=\"{RELATIONS}\"><sheets>");
        for (at, title) in self.titles.iter().enumerate() {
            let number = at + 1;
            let title = escaped(title);
            write!(text, "<sheet name=\"{title}\" sheetId=\"{number}\" r:id=\"rId{number}\"/>")
                .ok();
        }
        text + "</sheets></workbook>"
    }

    fn workbook_relations(&self) -> String {
        let mut text = format!("{DECLARATION}<Relationships xmlns=\"{PACKAGE}/relationships\">");
        for number in 1..=self.titles.len() {
            write!(
                text,
                "<Relationship Id=\"rId{number}\" Type=\"{RELATIONS}/worksheet\" \
                 Target=\"worksheets/sheet{number}.xml\"/>"
            )
            .ok();
        }
        write!(
            text,
            "<Relationship Id=\"rId{}\" Type=\"{RELATIONS}/styles\" Target=\"styles.xml\"/></Relationships>",
            self.titles.len() + 1
        )
        .ok();
        text
    }

    fn content_types(&self) -> String {
        let kind = "application/vnd.openxmlformats-officedocument.spreadsheetml";
        let mut text = format!(
            "{DECLARATION}<Types xmlns=\"{PACKAGE}/content-types\"><Default Extension=\"rels\" \
             ContentType=\"application/vnd.openxmlformats-package.relationships+xml\"/>\
             <Default Extension=\"xml\" ContentType=\"application/xml\"/>\
             <Override PartName=\"/xl/workbook.xml\" ContentType=\"{kind}.sheet.main+xml\"/>\
             <Override PartName=\"/xl/styles.xml\" ContentType=\"{kind}.styles+xml\"/>"
        );
        for number in 1..=self.titles.len() {
            write!(
                text,
                "<Override PartName=\"/xl/worksheets/sheet{number}.xml\" ContentType=\"{kind}.worksheet+xml\"/>"
            )
            .ok();
        }
        text + "</Types>"
    }

    /// A title that the format allows and no other sheet has; case does not distinguish two.
    fn free_title(&self, wanted: &str) -> String {
        let forbidden = |it: char| matches!(it, '[' | ']' | ':' | '*' | '?' | '/' | '\\');
        let title: String = wanted
            .chars()
            .map(|it| if forbidden(it) || it.is_control() { '-' } else { it })
            .collect();
        let title = title.trim_matches(['\'', ' ']);
        // `History` belongs to spreadsheets themselves.
        let title = if title.is_empty() || title.eq_ignore_ascii_case("history") {
            format!("{title}-")
        } else {
            title.to_owned()
        };
        let is_taken = |it: &str| self.titles.iter().any(|other| other.eq_ignore_ascii_case(it));
        let numbered = |number: usize| {
            let end = if number == 1 { String::new() } else { format!(" {number}") };
            let room = TITLE_LENGTH_MAX - end.len();
            let mut kept = String::new();
            for it in title.chars() {
                // Counted as spreadsheets count, in UTF-16.
                if kept.encode_utf16().count() + it.len_utf16() > room {
                    break;
                }
                kept.push(it);
            }
            kept.trim_end_matches(['\'', ' ']).to_owned() + &end
        };
        (1..=SHEETS_MAX + 1).map(numbered).find(|it| !is_taken(it)).unwrap_or_default()
    }
}

impl Default for Workbook {
    fn default() -> Self {
        Self::new()
    }
}

/// The letters of a column: A to Z, AA and so on.
fn column(at: usize) -> String {
    let mut letters = Vec::new();
    let mut left = at + 1;
    while left > 0 {
        letters.push(b'A' + ((left - 1) % 26) as u8);
        left = (left - 1) / 26;
    }
    letters.iter().rev().map(|it| char::from(*it)).collect()
}

fn push_cell(text: &mut String, place: &str, cell: Cell<'_>, text_style: u8) {
    let number = |text: &mut String, style: u8, number: f64| {
        write!(text, "<c r=\"{place}\" s=\"{style}\"><v>{number}</v></c>").ok();
    };
    match cell {
        Cell::Empty | Cell::Text("") => {}
        Cell::Text(it) => {
            let it = escaped(it);
            write!(
                text,
                "<c r=\"{place}\" s=\"{text_style}\" t=\"inlineStr\"><is>\
                 <t xml:space=\"preserve\">{it}</t></is></c>"
            )
            .ok();
        }
        Cell::Whole(it) => {
            write!(text, "<c r=\"{place}\"><v>{it}</v></c>").ok();
        }
        Cell::Date(it) => number(text, DATE, day_number(it)),
        Cell::Time(it) => number(text, TIME, part_of_day(it)),
        Cell::DateTime(it) => {
            number(text, DATE_TIME, day_number(it.date()) + part_of_day(it.time()));
        }
    }
}

/// Days since the end of 1899. The format counts a 29 February 1900 that never was, so that the numbers
/// are right from March 1900 on.
fn day_number(date: Date) -> f64 {
    let begin = jiff::civil::date(1899, 12, 30);
    f64::from(begin.until(date).map_or(0, |it| it.get_days()))
}

/// In whole seconds.
fn part_of_day(time: Time) -> f64 {
    let [hours, minutes, seconds] = [time.hour(), time.minute(), time.second()].map(f64::from);
    (hours * 3600.0 + minutes * 60.0 + seconds) / 86_400.0
}

/// Text of an element or an attribute. XML 1.0 has no place for most control characters.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for it in text.chars() {
        match it {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\t' | '\n' => escaped.push(it),
            '\u{FFFE}' | '\u{FFFF}' => escaped.push(char::REPLACEMENT_CHARACTER),
            it if it.is_control() => escaped.push(char::REPLACEMENT_CHARACTER),
            it => escaped.push(it),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn part(bytes: &[u8], name: &str) -> String {
        let mut archive = zip::ZipArchive::new(Cursor::new(bytes)).unwrap();
        let mut text = String::new();
        archive.by_name(name).unwrap().read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn cells_have_types_and_no_formulas() {
        let mut book = Workbook::new();
        book.begin_sheet("One", &[("Name", 20), ("Day", 12)]).unwrap();
        let noon = jiff::civil::time(12, 0, 0, 0);
        let day = jiff::civil::date(2026, 11, 23);
        book.row(&[
            Cell::Text("=1+1 <&>\u{1}"),
            Cell::Date(day),
            Cell::Time(noon),
            Cell::DateTime(day.to_datetime(noon)),
            Cell::Empty,
            Cell::Whole(-7),
        ])
        .unwrap();
        let bytes = book.finish().unwrap();
        let sheet = part(&bytes, "xl/worksheets/sheet1.xml");
        let (_, row) = sheet.split_once("<row r=\"2\">").unwrap();
        assert_eq!(
            row,
            "<c r=\"A2\" s=\"0\" t=\"inlineStr\"><is><t xml:space=\"preserve\">=1+1 &lt;&amp;&gt;\u{FFFD}</t></is></c>\
             <c r=\"B2\" s=\"2\"><v>46349</v></c><c r=\"C2\" s=\"3\"><v>0.5</v></c>\
             <c r=\"D2\" s=\"4\"><v>46349.5</v></c><c r=\"F2\"><v>-7</v></c></row></sheetData></worksheet>"
        );
        assert!(!sheet.contains("<f"), "{sheet}");
        assert!(part(&bytes, "xl/styles.xml").contains(r#"<xf numFmtId="14""#));
    }

    #[test]
    fn sheet_titles_are_valid_and_unique() {
        let mut book = Workbook::new();
        let long = "a".repeat(40);
        for title in
            ["mon/am", "MON-AM", "'x'", "", "History", &long, &long, "😀".repeat(20).as_str()]
        {
            book.begin_sheet(title, &[("A", 5)]).unwrap();
        }
        assert_eq!(
            book.titles[..5],
            ["mon-am", "MON-AM 2", "x", "-", "History-"].map(str::to_owned)
        );
        assert_eq!(book.titles[5..7], ["a".repeat(31), format!("{} 2", "a".repeat(29))]);
        assert_eq!(book.titles[7], "😀".repeat(15));
        let text = part(&book.finish().unwrap(), "xl/workbook.xml");
        assert!(text.contains(r#"<sheet name="MON-AM 2" sheetId="2" r:id="rId2"/>"#), "{text}");
    }

    #[test]
    fn sheets_are_bounded() {
        let mut book = Workbook::new();
        for _ in 0..SHEETS_MAX {
            book.begin_sheet("x", &[]).unwrap();
        }
        assert!(book.begin_sheet("x", &[]).is_err());
    }

    #[test]
    fn columns_are_lettered() {
        assert_eq!([0, 25, 26, 701, 702].map(column), ["A", "Z", "AA", "ZZ", "AAA"]);
    }
}
