//! `ocicle-runtime`, the OCI runtime shim.

use std::process::ExitCode;

fn main() -> ExitCode {
    match ocicle::applets::named() {
        Some(applet) => applet(),
        None => ocicle::shim::main(),
    }
}
