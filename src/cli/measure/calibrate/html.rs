//! The report of `rollcall calibrate` as one HTML file: no script, no picture but drawn lines,
//! nothing from elsewhere.

use std::fmt::Write as _;

use crate::cli::measure::calibrate::CalibrationReport;
use crate::cli::measure::calibrate::figures::{BIN, Histogram};
use crate::cli::measure::evaluate::percent;
use crate::cli::measure::plot::{Axis, Chart, Mark, Scale, Series, escaped, page};

const STYLE: &str = "body{font:15px/1.5 sans-serif;max-width:1300px;margin:2em auto;padding:0 1em;color:#222}\
                     table{border-collapse:collapse}td,th{text-align:left;padding:.2em 1.2em .2em 0;border-bottom:1px solid #ddd}\
                     svg{max-width:100%;height:auto}pre{background:#f4f4f4;padding:.8em}";

pub fn document(report: &CalibrationReport) -> String {
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Calibration of {0}/{1}</title>\
         <style>{STYLE}</style></head><body>\n<h1>Calibration of {0}/{1}</h1>\n<p>{2}, embedder {3:.12}…</p>\n",
        report.site, report.device, report.at, report.embedder
    );
    html += &page(&[histograms(report), searches(report)]);
    html += "<table>\n";
    for (name, value) in report.rows() {
        put(
            &mut html,
            format_args!("<tr><th>{}</th><td>{}</td></tr>", escaped(name), escaped(&value)),
        );
    }
    html += "</table>\n<h2>What follows</h2>\n";
    for line in report.advice() {
        put(&mut html, format_args!("<p>{}</p>", escaped(&line)));
    }
    if let Some(lines) = report.config_lines() {
        put(&mut html, format_args!("<pre>{}</pre>", escaped(&lines)));
    }
    html += "<h2>Look-alikes</h2>\n";
    if report.look_alikes.is_empty() {
        html += "<p>None: nobody's score with somebody else comes near the threshold.</p>\n";
    } else {
        html +=
            "<table>\n<tr><th>subject</th><th>subject</th><th>score</th><th>what to do</th></tr>\n";
        for pair in &report.look_alikes {
            put(
                &mut html,
                format_args!(
                    "<tr><td>{}</td><td>{}</td><td>{:.3}</td><td>{}</td></tr>",
                    escaped(&pair.subjects[0]),
                    escaped(&pair.subjects[1]),
                    pair.score,
                    escaped(pair.what.words())
                ),
            );
        }
        html += "</table>\n";
    }
    html + "</body></html>\n"
}

fn histograms(report: &CalibrationReport) -> Chart {
    let highest = [&report.genuine.histogram, &report.impostor.histogram]
        .iter()
        .flat_map(|it| it.shares().map(|(_, share)| share))
        .fold(0.01, f64::max);
    let threshold = f64::from(report.threshold);
    let top = (highest * 20.0).ceil() / 20.0;
    Chart {
        title: "How alike: the same person, different people".into(),
        x: Axis::new("score (cosine)", Scale::Linear, -0.2, 1.0),
        y: Axis::new("share of comparisons", Scale::Percent, 0.0, top),
        series: vec![
            Series::new(Mark::Line, "different people", steps(&report.impostor.histogram)),
            Series::new(Mark::Line, "the same person", steps(&report.genuine.histogram)),
            Series::new(
                Mark::Dashes,
                format!("threshold {threshold:.3}"),
                vec![(threshold, 0.0), (threshold, top)],
            ),
        ],
    }
}

fn steps(histogram: &Histogram) -> Vec<(f64, f64)> {
    histogram
        .shares()
        .flat_map(|(from, share)| [(f64::from(from), share), (f64::from(from + BIN), share)])
        .collect()
}

fn searches(report: &CalibrationReport) -> Chart {
    let least = 1e-5;
    let threshold = f64::from(report.threshold);
    let target = f64::from(report.fpir_target);
    let mut series = vec![
        Series::new(Mark::Line, "found somebody else", report.fpir_curve()),
        Series::new(
            Mark::Dashes,
            format!("aimed at: {}", percent(target)),
            vec![(0.2, target), (0.9, target)],
        ),
        Series::new(
            Mark::Dashes,
            format!("threshold {threshold:.3}"),
            vec![(threshold, least), (threshold, 1.0)],
        ),
    ];
    if let Some(suggested) = &report.suggested {
        series.push(Series::new(
            Mark::Dot,
            format!("for the target: {:.3}", suggested.threshold),
            vec![(f64::from(suggested.threshold), target)],
        ));
    }
    Chart {
        title: "Searches by people who are somebody else (FPIR)".into(),
        x: Axis::new("threshold", Scale::Linear, 0.2, 0.9),
        y: Axis::new("share of searches", Scale::LogPercent, least, 1.0),
        series,
    }
}

fn put(html: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(html, "{line}").expect("writing to a string cannot fail");
}
