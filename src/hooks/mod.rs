//! Without the shim: what stock runc and crun, and engines, call of ocicle's.
//!
//! [`action`] is CRIU's action script of a runtime that ocicle did not start: CRIU's configuration
//! names it, `/etc/criu/runc.conf`, `/etc/criu/crun.conf` or the annotation `org.criu.config`. At
//! `post-dump` all images are written and CRIU holds every process: the file systems are copied and
//! the checkpoint is committed. At `pre-restore` nothing of the container is there yet: they are put
//! back. [`oci`] clears away what a container that is gone left behind. [`archiver`] is what CRIU
//! below ocicle finds as `tar`.

pub mod action;
pub mod archiver;
mod caller;
pub mod oci;
