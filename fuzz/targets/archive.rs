//! What `ocicle inspect` is given: an archive, compressed or not, with anything in it.

#![no_main]

#[path = "../checks.rs"]
mod checks;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| checks::holds(checks::archive, bytes));
