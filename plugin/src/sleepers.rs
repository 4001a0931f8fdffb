//! Calls that sleep go on after a dump as if nothing had been: in the container that goes on with what
//! is left of their time, and in the images so that they are made again.
//!
//! A thread that is seized leaves its call. Of some calls the kernel keeps what is left in a restart
//! block, and goes on with it when the thread is let go (`-ERESTART_RESTARTBLOCK`; restart_syscall(2)).
//! CRIU writes `EINTR` to the images and to the thread instead (`compel_get_task_regs` in
//! compel/arch/x86/src/lib/infect.c), and its parasite's rt_sigreturn(2) empties the block. Other calls
//! end with `EINTR` by themselves, as none that is made twice would count time right (signal(7)); a
//! program that gets no signals does not expect that.
//!
//! So to CRIU such a call is one to make again. Of the thread it then writes registers that are about
//! to do so, and before it lets go of it, it is given back what it had.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::sync::{Mutex, PoisonError};
use std::{fs, mem};

use libc::{c_long, c_uint, iovec, pid_t};

use crate::arch::Registers;
use crate::hidden::Hidden;
use crate::restarted::call_of;
use crate::told::told;
use crate::tracee::{NT_PRSTATUS, Tracee};

/// Results that the kernel shows to a tracer alone (linux/errno.h).
const ERESTARTNOHAND: i64 = 514;
const ERESTART_RESTARTBLOCK: i64 = 516;

/// Calls that end with `EINTR`, whatever interrupts them (signal(7)).
const ENDING: [c_long; 7] = [
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_semop,
    libc::SYS_semtimedop,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_io_getevents,
];

/// A thread in such a call.
struct Sleeper {
    registers: Registers,
    /// Those of its floating point unit.
    extended: Vec<u8>,
    /// The number of the call, by which it is made again.
    call: c_long,
    /// The result at which the kernel makes the call again, by its restart block or anew.
    result: i64,
}

/// Every thread that CRIU has looked at since it seized it; nothing, of one that does not sleep.
static SEEN: Mutex<BTreeMap<pid_t, Option<Sleeper>>> = Mutex::new(BTreeMap::new());

type Ptrace = unsafe extern "C" fn(c_uint, ...) -> c_long;
static PTRACE: Hidden<Ptrace> = Hidden::new(c"ptrace");

/// ptrace(2), in which a thread that sleeps is one whose call is to be made again.
///
/// # Safety
/// As of ptrace(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ptrace(
    request: c_uint,
    tid: pid_t,
    address: *mut c_void,
    data: *mut c_void,
) -> c_long {
    let helps = told().sleepers;
    if helps {
        before(request, tid);
    }
    // SAFETY: it is variadic, and takes this much of each request.
    let Some(real) = (unsafe { PTRACE.get() }) else { return crate::hidden::missing().into() };
    // SAFETY: as the caller promises.
    let done = unsafe { real(request, tid, address, data) };
    if helps && done == 0 && request == libc::PTRACE_GETREGSET && address as usize == NT_PRSTATUS {
        // SAFETY: the request has been obeyed, so that this is an iovec, and what it names is filled.
        unsafe { hide(tid, data.cast()) };
    }
    done
}

/// What is to be done before a request of CRIU's.
fn before(request: c_uint, tid: pid_t) {
    match request {
        // Another time, as for a dump of memory alone.
        libc::PTRACE_SEIZE => drop(seen(|all| all.remove(&tid))),
        libc::PTRACE_SYSCALL => keep_restart_block(tid),
        libc::PTRACE_DETACH => let_go(tid),
        _ => {}
    }
}

fn seen<T>(work: impl FnOnce(&mut BTreeMap<pid_t, Option<Sleeper>>) -> T) -> T {
    work(&mut SEEN.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Shows CRIU the registers of a sleeper.
///
/// # Safety
/// `place` is one of registers, which are there.
unsafe fn hide(tid: pid_t, place: *const iovec) {
    // SAFETY: as the caller promises.
    let Some(place) = (unsafe { place.as_ref() }) else { return };
    if place.iov_len != mem::size_of::<Registers>() {
        return;
    }
    // SAFETY: as the caller promises; a program of 64 bits has as many.
    let Some(registers) = (unsafe { place.iov_base.cast::<Registers>().as_mut() }) else { return };
    let call = seen(|all| {
        let sleeper = all.entry(tid).or_insert_with(|| Sleeper::find(Tracee(tid), registers));
        sleeper.as_ref().filter(|sleeper| sleeper.is_as_found(registers)).map(|one| one.call)
    });
    if let Some(call) = call {
        registers.orig_rax = call.cast_unsigned();
        registers.rax = (-ERESTARTNOHAND).cast_unsigned();
    }
}

impl Sleeper {
    fn find(tracee: Tracee, registers: &Registers) -> Option<Self> {
        let call = registers.orig_rax.cast_signed();
        let is_ending = ENDING.contains(&call);
        let result = match -registers.rax.cast_signed() {
            _ if call < 0 => return None,
            ERESTART_RESTARTBLOCK => -ERESTART_RESTARTBLOCK,
            EINTR if is_ending => -ERESTARTNOHAND,
            _ => return None,
        };
        if is_to_handle_a_signal(tracee.0) {
            return None;
        }
        let read = |at, into: &mut [u8]| tracee.read(at, into).is_ok();
        let call =
            if call == libc::SYS_restart_syscall { call_of(registers, &read)? } else { call };
        let extended = tracee.extended().ok()?;
        Some(Self { registers: *registers, extended, call, result })
    }

    /// Whether nothing has been done to it.
    fn is_as_found(&self, now: &Registers) -> bool {
        let was = &self.registers;
        (now.rip, now.rax, now.orig_rax) == (was.rip, was.rax, was.orig_rax)
    }

    /// Whether it is about to make the call again: `syscall` has two bytes.
    fn is_at_its_call(&self, now: &Registers) -> bool {
        let at = self.registers.rip.wrapping_sub(2);
        (now.rip, now.rax) == (at, self.call.cast_unsigned())
    }
}

const EINTR: i64 = libc::EINTR as i64;

/// Whether a thread is about to run a handler, for which its call has ended. What cannot be read does.
fn is_to_handle_a_signal(tid: pid_t) -> bool {
    let Ok(status) = fs::read(format!("/proc/{tid}/status")) else { return true };
    let set = |name: &[u8]| {
        let line = status.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(name));
        let text = line.and_then(|line| str::from_utf8(line.trim_ascii()).ok());
        text.and_then(|text| u64::from_str_radix(text, 16).ok())
    };
    let sets = (set(b"SigPnd:"), set(b"ShdPnd:"), set(b"SigBlk:"), set(b"SigCgt:"));
    let (Some(own), Some(shared), Some(blocked), Some(caught)) = sets else { return true };
    (own | shared) & !blocked & caught != 0
}

/// The first thread leaves CRIU's parasite by rt_sigreturn(2), which empties the restart block. It is
/// not made: CRIU writes the registers and the signal mask itself (`restore_thread_ctx` in
/// compel/src/lib/infect.c), and the rest is given back in the end.
fn keep_restart_block(tid: pid_t) {
    let has_one = |sleeper: &Sleeper| sleeper.result == -ERESTART_RESTARTBLOCK;
    if !seen(|all| all.get(&tid).is_some_and(|one| one.as_ref().is_some_and(has_one))) {
        return;
    }
    let tracee = Tracee(tid);
    if tracee.is_entering(libc::SYS_rt_sigreturn)
        && let Ok(mut registers) = tracee.registers()
    {
        registers.orig_rax = u64::MAX;
        // If it is made nevertheless, the call begins anew.
        let _ = tracee.set_registers(&registers);
    }
}

/// Gives a sleeper back what it had. The results that restart a call mean something where the kernel
/// looks for signals, and nowhere else: of a thread that is elsewhere the call begins anew.
fn let_go(tid: pid_t) {
    let Some(sleeper) = seen(|all| all.remove(&tid)).flatten() else { return };
    let tracee = Tracee(tid);
    let Ok(now) = tracee.registers() else { return };
    // A dump that has failed early has left it alone, and the kernel goes on with its restart block.
    let is_left = sleeper.is_as_found(&now) && sleeper.result != -ERESTART_RESTARTBLOCK;
    if (!is_left && !sleeper.is_at_its_call(&now)) || !tracee.is_among_signals() {
        return;
    }
    let result = sleeper.result.cast_unsigned();
    let registers = Registers { rax: result, ..sleeper.registers };
    // It makes the call anew if that cannot be.
    let _ = tracee.set_extended(&sleeper.extended).and_then(|()| tracee.set_registers(&registers));
}
