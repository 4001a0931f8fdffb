//! Texts of the kernel's, of CRIU's, of annotations and of checkpoints.

#![no_main]

#[path = "../checks.rs"]
mod checks;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| checks::holds(checks::texts, bytes));
