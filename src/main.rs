//! `ocicle`, the operator's command.

use std::process::ExitCode;

fn main() -> ExitCode {
    match ocicle::applets::named() {
        Some(applet) => applet(),
        None => ocicle::cli::main(),
    }
}
