//! JSON: the index of a part, the manifest, the table of open files, what is said about a loan.

#![no_main]

#[path = "../checks.rs"]
mod checks;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| checks::holds(checks::documents, bytes));
