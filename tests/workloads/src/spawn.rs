//! Stays in the middle of a vfork for as long as somebody outside wants.

use std::ffi::CString;
use std::fs::{self, File};
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;

use anyhow::{Context, Result, ensure};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo, pause};

/// Makes DIR/fifo and DIR/ready, and starts `true` with that fifo as its standard input: the
/// child opens it before its exec, which takes until there is a writer. Then makes DIR/spawned.
pub fn run(dir: &Path) -> Result<()> {
    let fifo = dir.join("fifo");
    mkfifo(&fifo, Mode::S_IRWXU)?;
    File::create(dir.join("ready"))?;
    spawn_from(&fifo).context("spawning")?;
    fs::write(dir.join("spawned"), "")?;
    pause();
    Ok(())
}

fn spawn_from(fifo: &Path) -> Result<Pid> {
    let fifo = CString::new(fifo.as_os_str().as_bytes())?;
    let (program, mut pid) = (c"/bin/true", 0);
    let arguments = [program.as_ptr().cast_mut(), ptr::null_mut()];
    let mut actions = MaybeUninit::uninit();
    // SAFETY: the actions are initialised before they are used, and every string outlives the call.
    let status = unsafe {
        libc::posix_spawn_file_actions_init(actions.as_mut_ptr());
        libc::posix_spawn_file_actions_addopen(
            actions.as_mut_ptr(),
            0,
            fifo.as_ptr(),
            libc::O_RDONLY,
            0,
        );
        libc::posix_spawn(
            &raw mut pid,
            program.as_ptr(),
            actions.as_ptr(),
            ptr::null(),
            arguments.as_ptr(),
            ptr::null(),
        )
    };
    ensure!(status == 0, "posix_spawn: error {status}");
    Ok(Pid::from_raw(pid))
}
