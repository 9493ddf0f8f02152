//! `rollcall completions`: prints the completion script of a shell. Packages install it.

use std::io::{self, Write as _};

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  rollcall completions bash > /etc/bash_completion.d/rollcall")]
pub struct Args {
    /// The shell
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
    // Into memory first: the generator panics on a closed pipe, which `| head` makes.
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
    fn completions_exist_for_every_shell() {
        for shell in Shell::value_variants() {
            run(&Args { shell: *shell }, crate::cli::command()).unwrap();
        }
    }
}
