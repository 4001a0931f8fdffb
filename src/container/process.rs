//! A process of a container.

/// A process of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its number here.
    pub host: i32,
    /// Its number in the container's process namespace.
    pub inner: i32,
}
