//! A layer: its seek table and its frames.

#![no_main]

#[path = "../checks.rs"]
mod checks;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| checks::holds(checks::layer, bytes));
