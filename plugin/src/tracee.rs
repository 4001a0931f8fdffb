//! A thread that this CRIU traces, and that has stopped.

use std::ffi::c_void;
use std::{fs, io, mem, ptr};

use libc::{c_int, c_long, c_uint, iovec, pid_t};

use crate::arch::{self, Registers};

/// ptrace(2), past the C library and whoever hides its function.
///
/// # Safety
/// As of ptrace(2).
unsafe fn ptrace(request: c_uint, tid: pid_t, address: usize, data: *mut c_void) -> io::Result<()> {
    // SAFETY: as the caller promises.
    let done =
        unsafe { libc::syscall(libc::SYS_ptrace, c_long::from(request), tid, address, data) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// linux/elf.h
pub const NT_PRSTATUS: usize = 1;
/// linux/ptrace.h
const GETSIGMASK: c_uint = 0x420a;
const SETSIGMASK: c_uint = 0x420b;
/// The kernel's signal sets have a bit for each of 64 signals.
const MASK_SIZE: usize = 8;

#[cfg(target_arch = "x86_64")]
const NT_X86_XSTATE: usize = 0x202;
/// linux/ptrace.h
#[cfg(target_arch = "x86_64")]
const GET_SYSCALL_INFO: c_uint = 0x420e;

/// Such a thread.
#[derive(Clone, Copy)]
pub struct Tracee(pub pid_t);

impl Tracee {
    pub fn registers(self) -> io::Result<Registers> {
        // SAFETY: zeroes are a value of registers, which are numbers only.
        let mut registers: Registers = unsafe { mem::zeroed() };
        let size = mem::size_of::<Registers>();
        let mut place = iovec { iov_base: (&raw mut registers).cast(), iov_len: size };
        // SAFETY: the kernel writes to `registers` no more than fits, and says how much.
        unsafe { ptrace(libc::PTRACE_GETREGSET, self.0, NT_PRSTATUS, (&raw mut place).cast())? };
        // A program of 32 bits has fewer.
        if place.iov_len == size { Ok(registers) } else { Err(io::ErrorKind::Unsupported.into()) }
    }

    pub fn set_registers(self, registers: &Registers) -> io::Result<()> {
        let base = (&raw const *registers).cast_mut().cast();
        let mut place = iovec { iov_base: base, iov_len: mem::size_of::<Registers>() };
        // SAFETY: the kernel only reads them.
        unsafe { ptrace(libc::PTRACE_SETREGSET, self.0, NT_PRSTATUS, (&raw mut place).cast()) }
    }

    /// What a program keeps in wider registers, as the kernel writes it.
    #[cfg(target_arch = "x86_64")]
    pub fn extended(self) -> io::Result<Vec<u8>> {
        // The largest that there is has 11 KiB.
        let mut bytes = vec![0; 1 << 14];
        let mut place = place(bytes.as_mut_ptr(), bytes.len());
        // SAFETY: the kernel writes to `bytes` no more than fits, and says how much.
        unsafe { ptrace(libc::PTRACE_GETREGSET, self.0, NT_X86_XSTATE, (&raw mut place).cast())? };
        bytes.truncate(place.iov_len);
        Ok(bytes)
    }

    #[cfg(target_arch = "x86_64")]
    pub fn set_extended(self, bytes: &[u8]) -> io::Result<()> {
        let mut place = place(bytes.as_ptr().cast_mut(), bytes.len());
        // SAFETY: the kernel only reads them.
        unsafe { ptrace(libc::PTRACE_SETREGSET, self.0, NT_X86_XSTATE, (&raw mut place).cast()) }
    }

    /// Whether it stands at the begin of that system call.
    #[cfg(target_arch = "x86_64")]
    pub fn is_entering(self, call: c_long) -> bool {
        /// `PTRACE_SYSCALL_INFO_ENTRY`, the first byte of `ptrace_syscall_info`; the call is the fourth
        /// of its words of 64 bits.
        const ENTRY: u8 = 1;
        let mut info = [0_u64; 11];
        let size = mem::size_of_val(&info);
        // SAFETY: the kernel writes to `info` no more than its size.
        let told = unsafe { ptrace(GET_SYSCALL_INFO, self.0, size, info.as_mut_ptr().cast()) };
        told.is_ok() && info[0].to_le_bytes()[0] == ENTRY && info[3] == call.cast_unsigned()
    }

    /// Whether it has stopped where the kernel looks for signals, which is before the program goes on:
    /// at a breakpoint, or since CRIU asked it to (ptrace(2), *Stopped states*).
    #[cfg(target_arch = "x86_64")]
    pub fn is_among_signals(self) -> bool {
        const BREAKPOINT: (c_int, c_int) = (libc::SIGTRAP, libc::SI_KERNEL);
        // SAFETY: zeroes are a `siginfo_t`, and the kernel writes to it no more than its size.
        let (told, info) = unsafe {
            let mut info: libc::siginfo_t = mem::zeroed();
            (ptrace(libc::PTRACE_GETSIGINFO, self.0, 0, (&raw mut info).cast()), info)
        };
        let is_asked = info.si_code >> 8 == libc::PTRACE_EVENT_STOP;
        told.is_ok() && (is_asked || (info.si_signo, info.si_code) == BREAKPOINT)
    }

    /// The signals that it blocks.
    pub fn mask(self) -> io::Result<u64> {
        let mut mask = 0;
        let place: *mut u64 = &raw mut mask;
        // SAFETY: it has the size that is said.
        unsafe { ptrace(GETSIGMASK, self.0, MASK_SIZE, place.cast())? };
        Ok(mask)
    }

    pub fn set_mask(self, mut mask: u64) -> io::Result<()> {
        let place: *mut u64 = &raw mut mask;
        // SAFETY: it has the size that is said.
        unsafe { ptrace(SETSIGMASK, self.0, MASK_SIZE, place.cast()) }
    }

    /// Lets it run to the begin or the end of a system call, or to something else that stops it.
    pub fn run_to_call(self) -> io::Result<c_int> {
        // SAFETY: this request reads and writes no memory.
        unsafe { ptrace(libc::PTRACE_SYSCALL, self.0, 0, ptr::null_mut())? };
        self.wait()
    }

    /// Waits for its next stop.
    fn wait(self) -> io::Result<c_int> {
        let mut status = 0;
        loop {
            // SAFETY: `status` is an int of ours.
            let came = unsafe { libc::waitpid(self.0, &raw mut status, libc::__WALL) };
            match came {
                came if came == self.0 && libc::WIFSTOPPED(status) => return Ok(status),
                -1 if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
                -1 => return Err(io::Error::last_os_error()),
                _ => return Err(io::Error::from_raw_os_error(libc::ESRCH)),
            }
        }
    }

    /// Waits until it has ended.
    pub fn wait_for_end(self) {
        while self.wait().is_ok() {}
    }

    /// Reads its memory.
    pub fn read(self, at: u64, into: &mut [u8]) -> io::Result<()> {
        let (ours, its) = (place(into.as_mut_ptr(), into.len()), place(at as *mut u8, into.len()));
        // SAFETY: the kernel writes to `into` and no further; the other place is the tracee's.
        let done =
            unsafe { libc::process_vm_readv(self.0, &raw const ours, 1, &raw const its, 1, 0) };
        all(done, into.len())
    }

    /// Writes to its memory.
    pub fn write(self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let ours = place(bytes.as_ptr().cast_mut(), bytes.len());
        let its = place(at as *mut u8, bytes.len());
        // SAFETY: the kernel reads `bytes` and no further; the other place is the tracee's.
        let done =
            unsafe { libc::process_vm_writev(self.0, &raw const ours, 1, &raw const its, 1, 0) };
        all(done, bytes.len())
    }

    /// Where in its memory there is an instruction that makes a system call: the kernel's vDSO has
    /// some.
    fn call_instruction(self) -> io::Result<u64> {
        let maps = fs::read(format!("/proc/{}/maps", self.0))?;
        let (start, end) = vdso(&maps).ok_or(io::ErrorKind::NotFound)?;
        let length = usize::try_from(end - start).unwrap_or(0).min(1 << 16);
        let mut code = vec![0; length];
        self.read(start, &mut code)?;
        let found = (0..length).step_by(arch::STEP).find(|at| code[*at..].starts_with(arch::CALL));
        Ok(start + found.ok_or(io::ErrorKind::NotFound)? as u64)
    }
}

fn place(base: *mut u8, length: usize) -> iovec {
    iovec { iov_base: base.cast(), iov_len: length }
}

fn all(done: isize, wanted: usize) -> io::Result<()> {
    match usize::try_from(done) {
        Err(_) => Err(io::Error::last_os_error()),
        Ok(done) if done == wanted => Ok(()),
        Ok(_) => Err(io::Error::from_raw_os_error(libc::EFAULT)),
    }
}

/// From where to where the vDSO is, by the text of `/proc/PID/maps`, in which paths may be any bytes.
fn vdso(maps: &[u8]) -> Option<(u64, u64)> {
    let line = maps.split(|byte| *byte == b'\n').find(|line| line.ends_with(b"[vdso]"))?;
    let range = str::from_utf8(line.split(|byte| *byte == b' ').next()?).ok()?;
    let (start, end) = range.split_once('-')?;
    let number = |text| u64::from_str_radix(text, 16).ok();
    Some((number(start)?, number(end)?)).filter(|(start, end)| start < end)
}

/// A process that makes system calls for us, its signals held off.
pub struct Visit {
    tracee: Tracee,
    registers: Registers,
    mask: u64,
    at: u64,
    /// Whether a SIGSTOP was on its way, and is to come again.
    is_to_stop: bool,
}

impl Visit {
    /// Has `work` done, and puts everything back.
    pub fn to<T>(tracee: Tracee, work: impl FnOnce(&mut Self) -> io::Result<T>) -> io::Result<T> {
        let (registers, mask) = (tracee.registers()?, tracee.mask()?);
        let at = tracee.call_instruction()?;
        tracee.set_mask(u64::MAX)?;
        let mut visit = Self { tracee, registers, mask, at, is_to_stop: false };
        let done = work(&mut visit);
        visit.end().and(done)
    }

    fn end(self) -> io::Result<()> {
        let Self { tracee, registers, mask, is_to_stop, .. } = self;
        let restored = tracee.set_registers(&registers).and(tracee.set_mask(mask));
        if is_to_stop {
            // SAFETY: kill(2) reads and writes no memory.
            unsafe { libc::kill(tracee.0, libc::SIGSTOP) };
        }
        restored
    }

    /// Has it make a system call, of which `argument` is the last argument, in its memory; returns
    /// what the kernel does.
    pub fn call(&mut self, number: i64, first: [u64; 2], argument: &[u8]) -> io::Result<i64> {
        // What is on the stack is put back before anybody can look. One page holds it.
        let place = arch::stack(&self.registers) & !63;
        let mut before = vec![0; argument.len()];
        self.tracee.read(place, &mut before)?;
        self.tracee.write(place, argument)?;
        let returned = self.enter(number, [first[0], first[1], place]);
        self.tracee.write(place, &before)?;
        returned
    }

    fn enter(&mut self, number: i64, arguments: [u64; 3]) -> io::Result<i64> {
        /// That of a system call, with `PTRACE_O_TRACESYSGOOD`, which CRIU has set.
        const CALL: c_int = libc::SIGTRAP | 0x80;
        let mut registers = self.registers;
        arch::enter(&mut registers, self.at, number, arguments);
        self.tracee.set_registers(&registers)?;
        // The begin of the call and its end. Of what else can stop it, few come.
        let mut calls = 0;
        for _ in 0..8 {
            match self.tracee.run_to_call()? >> 8 {
                CALL => calls += 1,
                // One that was stopped at the dump, and is to be so again (`finalize_restore` in
                // criu/cr-restore.c).
                libc::SIGSTOP => self.is_to_stop = true,
                _ => {}
            }
            if calls == 2 {
                return Ok(arch::result(&self.tracee.registers()?));
            }
        }
        Err(io::Error::from_raw_os_error(libc::EINTR))
    }
}
