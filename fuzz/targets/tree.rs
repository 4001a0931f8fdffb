//! The archive of a tmpfs, unpacked.

#![no_main]

#[path = "../checks.rs"]
mod checks;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| checks::holds(checks::tree, bytes));
