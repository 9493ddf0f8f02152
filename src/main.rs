//! Temporary dispatcher for trying the measuring commands.
use clap::Parser;
use rollcall::recognise::decision::ThresholdRule;
use rollcall::vision::VisionSettings;
use rollcall::vision::manifest::Precision;

#[derive(clap::Parser)]
enum Cli {
    Evaluate(rollcall::cli::evaluate::Args),
    Bench(rollcall::cli::bench::Args),
}

fn main() -> anyhow::Result<()> {
    let vision = VisionSettings {
        models: "models".into(),
        runtime_library: None,
        embedder: "fr_feature".into(),
        precision: Precision::Int8,
        threads: 1,
        pad: true,
    };
    match Cli::parse() {
        Cli::Bench(args) => rollcall::cli::bench::run(&args, &vision, None),
        Cli::Evaluate(args) => rollcall::cli::evaluate::run(&args, &vision, |spec| ThresholdRule {
            threshold: spec.threshold,
            subjects: spec.threshold_subjects,
            per_decade: spec.threshold_per_decade,
            fpir: 0.001,
            fixed: None,
        }),
    }
}
