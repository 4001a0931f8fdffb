//! What differs between processors: registers, and how a system call is made.

pub use libc::user_regs_struct as Registers;

#[cfg(target_arch = "x86_64")]
mod this {
    use super::Registers;

    /// `syscall`
    pub const CALL: &[u8] = &[0x0f, 0x05];
    /// At which distances instructions can begin.
    pub const STEP: usize = 1;

    /// Has the system call `number` made by the instruction that is at `at`.
    pub fn enter(registers: &mut Registers, at: u64, number: i64, arguments: [u64; 3]) {
        /// Single steps, and strings that go down (EFLAGS.TF, EFLAGS.DF).
        const ODD: u64 = 0x500;
        registers.rip = at;
        registers.rax = number.cast_unsigned();
        registers.orig_rax = u64::MAX;
        registers.eflags &= !ODD;
        [registers.rdi, registers.rsi, registers.rdx] = arguments;
    }

    /// What it has returned.
    pub fn result(registers: &Registers) -> i64 {
        registers.rax.cast_signed()
    }

    /// The stack pointer.
    pub fn stack(registers: &Registers) -> u64 {
        registers.rsp
    }
}

#[cfg(target_arch = "aarch64")]
mod this {
    use super::Registers;

    /// `svc #0`
    pub const CALL: &[u8] = &[0x01, 0x00, 0x00, 0xd4];
    /// At which distances instructions can begin.
    pub const STEP: usize = 4;

    /// Has the system call `number` made by the instruction that is at `at`.
    ///
    /// x7 is not ours at a stop of ptrace: the kernel keeps it (`report_syscall_enter` in
    /// arch/arm64/kernel/ptrace.c).
    pub fn enter(registers: &mut Registers, at: u64, number: i64, arguments: [u64; 3]) {
        registers.pc = at;
        registers.regs[8] = number.cast_unsigned();
        registers.regs[..3].copy_from_slice(&arguments);
    }

    /// What it has returned.
    pub fn result(registers: &Registers) -> i64 {
        registers.regs[0].cast_signed()
    }

    /// The stack pointer.
    pub fn stack(registers: &Registers) -> u64 {
        registers.sp
    }
}

pub use this::*;
