//! Charts as SVG text: lines and points on linear or logarithmic axes, enough for the curves of `evaluate`.
//!
//! Written by hand because that is all that is needed: a plotting crate brings font handling or a raster backend to draw
//! two polylines. Text is left to the viewer's own sans-serif font. Not in it: what the curves mean.

use std::fmt::Write as _;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 460.0;
/// Left, right, top, bottom.
const MARGINS: [f64; 4] = [76.0, 32.0, 44.0, 60.0];
/// Okabe and Ito's palette: told apart by colour-blind readers, and in grey.
const COLOURS: [&str; 4] = ["#0072b2", "#d55e00", "#009e73", "#555555"];

/// One axis: its range, how values are placed in it and written.
#[derive(Clone, Debug)]
pub struct Axis {
    label: String,
    low: f64,
    high: f64,
    log: bool,
    percent: bool,
}

impl Axis {
    pub fn linear(label: &str, low: f64, high: f64) -> Self {
        Self { label: label.into(), low, high, log: false, percent: false }
    }

    pub fn percent(label: &str, low: f64, high: f64) -> Self {
        Self { percent: true, ..Self::linear(label, low, high) }
    }

    pub fn log_percent(label: &str, low: f64, high: f64) -> Self {
        Self { log: true, ..Self::percent(label, low, high) }
    }

    /// 0.0 at the low end to 1.0 at the high end; what lies beyond is put at the end.
    fn place(&self, value: f64) -> f64 {
        let value = value.clamp(self.low, self.high);
        if self.log {
            (value / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low)
        }
    }

    /// Values with a grid line, and whether they are written.
    fn ticks(&self) -> Vec<(f64, bool)> {
        if !self.log {
            let step = (self.high - self.low) / if self.percent { 5.0 } else { 6.0 };
            let count = ((self.high - self.low) / step).round() as usize;
            return (0..=count).map(|n| (self.low + step * n as f64, true)).collect();
        }
        let mut ticks = Vec::new();
        let mut decade = self.low;
        while decade < self.high * 1.001 {
            for digit in 1..10 {
                let value = decade * f64::from(digit);
                if value < self.high * 1.001 {
                    ticks.push((value, [1, 2, 5].contains(&digit)));
                }
            }
            decade *= 10.0;
        }
        ticks
    }

    fn written(&self, value: f64) -> String {
        let (value, unit) = if self.percent { (value * 100.0, " %") } else { (value, "") };
        let rounded = (value * 100.0).round() / 100.0;
        format!("{}{unit}", if rounded == 0.0 { 0.0 } else { rounded })
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Style {
    Line,
    Dashed,
    Point,
}

#[derive(Clone, Debug)]
pub struct Series {
    name: String,
    points: Vec<(f64, f64)>,
    style: Style,
}

impl Series {
    pub fn new(name: &str, points: Vec<(f64, f64)>) -> Self {
        Self { name: name.into(), points, style: Style::Line }
    }
    pub fn dashed(name: &str, points: Vec<(f64, f64)>) -> Self {
        Self { style: Style::Dashed, ..Self::new(name, points) }
    }
    pub fn point(name: &str, at: (f64, f64)) -> Self {
        Self { style: Style::Point, ..Self::new(name, vec![at]) }
    }
}

#[derive(Clone, Debug)]
pub struct Chart {
    pub title: String,
    pub x: Axis,
    pub y: Axis,
    pub series: Vec<Series>,
    pub legend: Legend,
}

/// Where the legend stands at the right: where the curves are not.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Legend {
    Top,
    Middle,
    Bottom,
}

/// The charts side by side, as a complete SVG document.
pub fn page(charts: &[Chart]) -> String {
    let width = WIDTH * charts.len() as f64;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{HEIGHT}\" viewBox=\"0 0 {width} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    for (index, chart) in charts.iter().enumerate() {
        put(&mut svg, format_args!("<g transform=\"translate({} 0)\">", WIDTH * index as f64));
        chart.draw(&mut svg);
        put(&mut svg, format_args!("</g>"));
    }
    svg += "</svg>\n";
    svg
}

impl Chart {
    fn at(&self, x: f64, y: f64) -> (f64, f64) {
        let [left, right, top, bottom] = MARGINS;
        (
            left + self.x.place(x) * (WIDTH - left - right),
            HEIGHT - bottom - self.y.place(y) * (HEIGHT - top - bottom),
        )
    }

    fn draw(&self, svg: &mut String) {
        let [left, right, top, bottom] = MARGINS;
        let (middle_x, middle_y) =
            (f64::midpoint(left, WIDTH - right), f64::midpoint(top, HEIGHT - bottom));
        let text = |svg: &mut String, x: f64, y: f64, more: &str, what: &str| {
            put(
                svg,
                format_args!("<text x=\"{x:.1}\" y=\"{y:.1}\" {more}>{}</text>", escaped(what)),
            );
        };
        text(svg, middle_x, 26.0, "text-anchor=\"middle\" font-size=\"16\"", &self.title);
        text(svg, middle_x, HEIGHT - 14.0, "text-anchor=\"middle\"", &self.x.label);
        let turned = format!("text-anchor=\"middle\" transform=\"rotate(-90 18 {middle_y:.1})\"");
        text(svg, 18.0, middle_y, &turned, &self.y.label);
        for (value, labelled) in self.x.ticks() {
            let (x, y) = self.at(value, self.y.low);
            put(
                svg,
                format_args!("<path d=\"M{x:.1} {y:.1}V{top}\" stroke=\"{}\"/>", grid(labelled)),
            );
            if labelled {
                text(svg, x, y + 20.0, "text-anchor=\"middle\"", &self.x.written(value));
            }
        }
        for (value, labelled) in self.y.ticks() {
            let (x, y) = self.at(self.x.low, value);
            put(
                svg,
                format_args!(
                    "<path d=\"M{x:.1} {y:.1}H{}\" stroke=\"{}\"/>",
                    WIDTH - right,
                    grid(labelled)
                ),
            );
            if labelled {
                text(svg, x - 8.0, y + 4.5, "text-anchor=\"end\"", &self.y.written(value));
            }
        }
        let (wide, high) = (WIDTH - left - right, HEIGHT - top - bottom);
        put(
            svg,
            format_args!(
                "<rect x=\"{left}\" y=\"{top}\" width=\"{wide}\" height=\"{high}\" fill=\"none\" stroke=\"#333\"/>"
            ),
        );
        for (series, colour) in self.series.iter().zip(COLOURS.iter().cycle()) {
            self.curve(svg, series, colour);
        }
        self.legend(svg);
    }

    fn curve(&self, svg: &mut String, series: &Series, colour: &str) {
        if series.style == Style::Point {
            for (x, y) in series.points.iter().map(|(x, y)| self.at(*x, *y)) {
                put(
                    svg,
                    format_args!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"5\" fill=\"{colour}\"/>"),
                );
            }
            return;
        }
        let dash = if series.style == Style::Dashed { " stroke-dasharray=\"6 5\"" } else { "" };
        let mut points = String::new();
        let mut last = None;
        for point in &series.points {
            let (x, y) = self.at(point.0, point.1);
            let here = (x.round(), (y * 2.0).round());
            // Thousands of steps of a tenth of a pixel show nothing and make a large file.
            if last != Some(here) {
                write!(points, "{x:.1},{y:.1} ").expect("writing to a string cannot fail");
                last = Some(here);
            }
        }
        put(
            svg,
            format_args!(
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"{dash}/>",
                points.trim_end()
            ),
        );
    }

    fn legend(&self, svg: &mut String) {
        let [_, right, top, bottom] = MARGINS;
        let height = 20.0 * self.series.len() as f64 + 8.0;
        let longest =
            self.series.iter().map(|series| series.name.chars().count()).max().unwrap_or(0);
        let width = 44.0 + 7.2 * longest as f64;
        let x = WIDTH - right - width - 8.0;
        let y = match self.legend {
            Legend::Top => top + 8.0,
            Legend::Middle => f64::midpoint(top, HEIGHT - bottom - height),
            Legend::Bottom => HEIGHT - bottom - height - 8.0,
        };
        put(
            svg,
            format_args!(
                "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height}\" fill=\"white\" fill-opacity=\"0.9\" stroke=\"#bbb\"/>"
            ),
        );
        for (index, (series, colour)) in self.series.iter().zip(COLOURS.iter().cycle()).enumerate()
        {
            let line = y + 18.0 + 20.0 * index as f64;
            match series.style {
                Style::Point => {
                    put(
                        svg,
                        format_args!(
                            "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"5\" fill=\"{colour}\"/>",
                            x + 20.0,
                            line - 4.0
                        ),
                    );
                }
                style => {
                    let dash =
                        if style == Style::Dashed { " stroke-dasharray=\"6 5\"" } else { "" };
                    put(
                        svg,
                        format_args!(
                            "<path d=\"M{:.1} {:.1}h24\" stroke=\"{colour}\" stroke-width=\"2\"{dash}/>",
                            x + 8.0,
                            line - 4.0
                        ),
                    );
                }
            }
            put(
                svg,
                format_args!(
                    "<text x=\"{:.1}\" y=\"{line:.1}\">{}</text>",
                    x + 40.0,
                    escaped(&series.name)
                ),
            );
        }
    }
}

fn grid(strong: bool) -> &'static str {
    if strong { "#d0d0d0" } else { "#eeeeee" }
}

fn put(svg: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(svg, "{line}").expect("writing to a string cannot fail");
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_placed_within_the_axis() {
        let axis = Axis::log_percent("rate", 1e-3, 1.0);
        for (value, expected) in
            [(1e-3, 0.0), (1.0, 1.0), (0.0, 0.0), (5.0, 1.0), (10f64.powf(-1.5), 0.5)]
        {
            assert!((axis.place(value) - expected).abs() < 1e-9, "{value}");
        }
        assert_eq!((axis.written(0.001), axis.written(0.2)), ("0.1 %".into(), "20 %".into()));
    }

    #[test]
    fn a_page_is_well_formed_and_escapes_its_text() {
        let series = vec![
            Series::new("a < b & c", vec![(0.0, 1.0), (1.0, 0.0)]),
            Series::point("here", (0.5, 0.5)),
        ];
        let chart = Chart {
            title: "T".into(),
            x: Axis::linear("x", 0.0, 1.0),
            y: Axis::percent("y", 0.0, 1.0),
            series,
            legend: Legend::Top,
        };
        let svg = page(&[chart]);
        assert!(svg.contains("a &lt; b &amp; c") && svg.ends_with("</svg>\n"));
        assert_eq!(svg.matches("<g ").count(), svg.matches("</g>").count());
    }
}
