//! CRIU log.
