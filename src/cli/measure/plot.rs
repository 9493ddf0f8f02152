//! Line charts as SVG text, for `evaluate --plot` and the report of `calibrate`: curves and points
//! on linear or logarithmic axes, with the legend below. Written by hand because a plotting crate
//! brings font handling or a raster backend (`docs/decisions/0028-no-chart-library.md`).

use std::fmt::{self, Write as _};

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 540.0;
/// The edges of the plotting area: left, right, top, bottom. Four legend lines fit below it.
const AREA: [f64; 4] = [76.0, 608.0, 44.0, 400.0];
/// The palette of Okabe and Ito: distinct for colour-blind readers, and in grey.
const COLOURS: [&str; 4] = ["#0072b2", "#d55e00", "#009e73", "#555555"];

#[derive(PartialEq)]
pub enum Scale {
    Linear,
    Percent,
    LogPercent,
}

pub struct Axis {
    label: &'static str,
    low: f64,
    high: f64,
    scale: Scale,
}

impl Axis {
    pub fn new(label: &'static str, scale: Scale, low: f64, high: f64) -> Self {
        Self { label, low, high, scale }
    }

    /// Returns 0.0 for the low end to 1.0 for the high end; values beyond are put at the end.
    fn position(&self, value: f64) -> f64 {
        let value = value.clamp(self.low, self.high);
        match self.scale {
            Scale::LogPercent => (value / self.low).ln() / (self.high / self.low).ln(),
            _ => (value - self.low) / (self.high - self.low),
        }
    }

    /// Returns the values with a grid line, each with its label.
    fn ticks(&self) -> Vec<(f64, String)> {
        let values: Vec<f64> = if self.scale == Scale::LogPercent {
            let decades = std::iter::successors(Some(self.low), |decade| Some(decade * 10.0))
                .take_while(|decade| *decade < self.high * 1.001);
            let values = decades.flat_map(|decade| [1.0, 2.0, 5.0].map(|digit| decade * digit));
            values.filter(|value| *value < self.high * 1.001).collect()
        } else {
            (0..=5).map(|n| self.low + (self.high - self.low) / 5.0 * f64::from(n)).collect()
        };
        let label = |value: f64| match self.scale {
            Scale::Linear => format!("{:.2}", value + 0.0),
            _ => format!("{} %", (value * 1e5).round() / 1e3),
        };
        values.into_iter().map(|value| (value, label(value))).collect()
    }
}

/// A curve through points, or a dot at each.
pub enum Mark {
    Line,
    Dashes,
    Dot,
}

pub struct Series {
    mark: Mark,
    name: String,
    points: Vec<(f64, f64)>,
}

impl Series {
    pub fn new(mark: Mark, name: impl Into<String>, points: Vec<(f64, f64)>) -> Self {
        Self { mark, name: name.into(), points }
    }
}

pub struct Chart {
    pub title: String,
    pub x: Axis,
    pub y: Axis,
    pub series: Vec<Series>,
}

/// Returns the charts side by side, as a complete SVG document.
pub fn page(charts: &[Chart]) -> String {
    let width = WIDTH * charts.len() as f64;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{HEIGHT}\" \
         viewBox=\"0 0 {width} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    for (index, chart) in charts.iter().enumerate() {
        let left = WIDTH * index as f64;
        writeln!(svg, "<g transform=\"translate({left} 0)\">")
            .expect("writing to a string cannot fail");
        chart.draw(&mut svg).expect("writing to a string cannot fail");
        svg += "</g>\n";
    }
    svg + "</svg>\n"
}

impl Chart {
    fn draw(&self, svg: &mut String) -> fmt::Result {
        let [left, right, top, bottom] = AREA;
        let x_at = |value| left + self.x.position(value) * (right - left);
        let y_at = |value| bottom - self.y.position(value) * (bottom - top);
        let middle = f64::midpoint(left, right);
        text(svg, middle, 26.0, "text-anchor=\"middle\" font-size=\"16\"", &self.title)?;
        text(svg, middle, bottom + 44.0, "text-anchor=\"middle\"", self.x.label)?;
        let turned = "text-anchor=\"middle\" transform=\"rotate(-90 18 222)\"";
        text(svg, 18.0, 222.0, turned, self.y.label)?;
        for (value, label) in self.x.ticks() {
            let x = x_at(value);
            writeln!(svg, "<path d=\"M{x:.1} {bottom}V{top}\" stroke=\"#ddd\"/>")?;
            text(svg, x, bottom + 20.0, "text-anchor=\"middle\" font-size=\"11\"", &label)?;
        }
        for (value, label) in self.y.ticks() {
            let y = y_at(value);
            writeln!(svg, "<path d=\"M{left} {y:.1}H{right}\" stroke=\"#ddd\"/>")?;
            text(svg, left - 8.0, y + 4.5, "text-anchor=\"end\" font-size=\"11\"", &label)?;
        }
        for (index, (series, colour)) in self.series.iter().zip(COLOURS).enumerate() {
            let points = series.points.iter().map(|(x, y)| (x_at(*x), y_at(*y)));
            let mut steps: Vec<_> = points.map(|(x, y)| format!("{x:.0},{y:.1}")).collect();
            // Thousands of steps of a tenth of a pixel only make the file large.
            steps.dedup();
            // A dot is a dash of no length with round ends.
            let (symbol, stroke) = match series.mark {
                Mark::Line => ("—", "2"),
                Mark::Dashes => ("- -", "2\" stroke-dasharray=\"6 5"),
                Mark::Dot => ("●", "10\" stroke-linecap=\"round"),
            };
            let path = steps.join("L");
            writeln!(
                svg,
                "<path d=\"M{path}h0\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"{stroke}\"/>"
            )?;
            let fill = format!("fill=\"{colour}\"");
            let y = bottom + 66.0 + 20.0 * index as f64;
            text(svg, left, y, &fill, &format!("{symbol} {}", series.name))?;
        }
        Ok(())
    }
}

fn text(svg: &mut String, x: f64, y: f64, attributes: &str, content: &str) -> fmt::Result {
    let content = escaped(content);
    writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" {attributes}>{content}</text>")
}

/// Escapes text for XML and HTML.
pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_lie_within_the_axis() {
        let axis = Axis::new("rate", Scale::LogPercent, 1e-3, 1.0);
        for (value, expected) in
            [(1e-3, 0.0), (1.0, 1.0), (0.0, 0.0), (5.0, 1.0), (10f64.powf(-1.5), 0.5)]
        {
            assert!((axis.position(value) - expected).abs() < 1e-9, "{value}");
        }
        assert_eq!(axis.ticks()[0].1, "0.1 %");
    }

    #[test]
    fn page_is_well_formed_and_escapes_text() {
        let points = vec![(0.0, 1.0), (1.0, 0.0)];
        let series = vec![Series::new(Mark::Line, "a < b & c", points)];
        let x = Axis::new("x", Scale::Linear, 0.0, 1.0);
        let y = Axis::new("y", Scale::Percent, 0.0, 1.0);
        let svg = page(&[Chart { title: "T".into(), x, y, series }]);
        assert!(svg.contains("a &lt; b &amp; c") && svg.ends_with("</svg>\n"));
        assert_eq!(svg.matches("<g ").count(), svg.matches("</g>").count());
    }
}
