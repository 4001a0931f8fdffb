//! `ocicle-runtime`, the OCI runtime shim.

use std::process::ExitCode;

fn main() -> ExitCode {
    ocicle::passing::main()
}
