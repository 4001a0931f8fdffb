//! System calls that fail, as on an older kernel or on a file system that can do less.

use std::io;

use nix::errno::Errno;

/// A system call, and how it fails.
#[derive(Clone, Copy)]
pub struct Refused {
    pub call: i64,
    pub errno: Errno,
}

impl Refused {
    pub fn new(call: i64, errno: Errno) -> Self {
        Self { call, errno }
    }

    /// Has the call fail from now on, in this thread and in what it starts (seccomp(2)).
    pub fn install(self) {
        use libc::{BPF_ABS, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W};
        let step = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
        let load = |offset| step(BPF_LD | BPF_W | BPF_ABS, 0, 0, offset);
        let answer = |value| step(BPF_RET | BPF_K, 0, 0, value);
        let mut steps = [
            load(0),
            step(BPF_JMP | BPF_JEQ | BPF_K, 0, 1, self.call as u32),
            answer(libc::SECCOMP_RET_ERRNO | self.errno as u32),
            answer(libc::SECCOMP_RET_ALLOW),
        ];
        let program = libc::sock_fprog { len: steps.len() as u16, filter: steps.as_mut_ptr() };
        // SAFETY: the program and its steps outlive the call, which copies them.
        #[expect(unsafe_code, reason = "libc has no function for seccomp")]
        let result = unsafe {
            libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program)
        };
        assert_eq!(result, 0, "installing a filter: {}", io::Error::last_os_error());
    }
}
