//! `rollcall completions`: what a shell needs to complete our commands and flags; packages put it where shells look.

use std::io::{self, Write as _};

#[derive(Debug, clap::Args)]
pub struct Args {
    shell: Shell,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

pub fn run(args: &Args, mut command: clap::Command) -> anyhow::Result<()> {
    use clap_complete::Shell as Of;
    let shell = match args.shell {
        Shell::Bash => Of::Bash,
        Shell::Zsh => Of::Zsh,
        Shell::Fish => Of::Fish,
    };
    // Into memory first: the generator panics when its output goes away, and `| head` is no mistake.
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut command, "rollcall", &mut text);
    match io::stdout().write_all(&text) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::*;

    #[test]
    fn every_shell_has_its_own() {
        for shell in Shell::value_variants() {
            run(&Args { shell: *shell }, crate::cli::command()).unwrap();
        }
    }
}
