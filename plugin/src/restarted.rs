//! Which call a thread has come back to by restart_syscall(2).
//!
//! A call that was interrupted once, be it by a checkpoint before this one or by a pause, has been made
//! again under another number, and what the kernel needs for it is in the thread's restart block, which
//! is in no image. Its own number is nowhere any more; but its arguments are still in the registers,
//! and those calls that go on like this (`set_restart_fn` in the kernel) take arguments of which each
//! makes sense to one of them. Where two could be meant, the program's code is asked, and if that does
//! not say it, nobody guesses.

use libc::c_long;

use crate::arch::Registers;

/// Reads memory of the thread; whether all of it is there.
type Read<'a> = &'a dyn Fn(u64, &mut [u8]) -> bool;

/// Clocks have small numbers, those of processes and threads ones below 0.
const CLOCKS: i32 = 16;
/// More files than this, a program that waits for one of them can hardly have open.
const FILES: u64 = 1 << 12;

/// The number of the call, if it can be known.
pub fn call_of(registers: &Registers, read: Read<'_>) -> Option<c_long> {
    let mut meant: Vec<c_long> = [
        (libc::SYS_nanosleep, is_nanosleep as fn(&Registers, Read<'_>) -> bool),
        (libc::SYS_clock_nanosleep, is_clock_nanosleep),
        (libc::SYS_futex, is_futex),
        (libc::SYS_poll, is_poll),
    ]
    .into_iter()
    .filter(|(_, is_it)| is_it(registers, read))
    .map(|(call, _)| call)
    .collect();
    if meant.is_empty() && is_sleep_by_poll(registers) {
        meant.push(libc::SYS_poll);
    }
    match meant[..] {
        [call] => Some(call),
        _ => by_code(registers.rip, read).filter(|call| meant.contains(call)),
    }
}

/// nanosleep(wanted, left)
fn is_nanosleep(registers: &Registers, read: Read<'_>) -> bool {
    is_time(registers.rdi, read) && is_place_or_none(registers.rsi, read)
}

/// clock_nanosleep(clock, relative, wanted, left); of an absolute time nothing has to be kept.
fn is_clock_nanosleep(registers: &Registers, read: Read<'_>) -> bool {
    let is_clock = (registers.rdi as i32) < CLOCKS;
    is_clock && registers.rsi == 0 && is_time(registers.rdx, read)
}

/// futex(word, operation, value, limit)
fn is_futex(registers: &Registers, read: Read<'_>) -> bool {
    const FLAGS: i32 = libc::FUTEX_PRIVATE_FLAG | libc::FUTEX_CLOCK_REALTIME;
    let waits = [libc::FUTEX_WAIT, libc::FUTEX_WAIT_BITSET];
    let is_wait =
        u32::try_from(registers.rsi).is_ok() && waits.contains(&(registers.rsi as i32 & !FLAGS));
    let is_word = registers.rdi.is_multiple_of(4) && is_place(registers.rdi, read);
    is_wait && is_word && is_time(registers.r10, read)
}

/// poll(files, count, milliseconds)
fn is_poll(registers: &Registers, read: Read<'_>) -> bool {
    if !(1..=FILES).contains(&registers.rsi) {
        return false;
    }
    // `struct pollfd`: a descriptor, and two masks of 16 bits. One below 0 is left out.
    let mut files = vec![0; registers.rsi as usize * 8];
    read(registers.rdi, &mut files)
        && files.chunks_exact(8).all(|file| {
            let descriptor = i32::from_ne_bytes([file[0], file[1], file[2], file[3]]);
            let wanted = u16::from_ne_bytes([file[4], file[5]]);
            descriptor < 1 << 20 && wanted < 1 << 14
        })
}

/// poll() of no file sleeps.
fn is_sleep_by_poll(registers: &Registers) -> bool {
    registers.rsi == 0 && u32::try_from(registers.rdx).is_ok()
}

/// A `timespec`.
fn is_time(at: u64, read: Read<'_>) -> bool {
    let mut time = [0; 16];
    if at == 0 || !read(at, &mut time) {
        return false;
    }
    let [seconds, nanoseconds] = [0, 8].map(|from| {
        let mut word = [0; 8];
        word.copy_from_slice(&time[from..from + 8]);
        i64::from_ne_bytes(word)
    });
    seconds >= 0 && (0..1_000_000_000).contains(&nanoseconds)
}

fn is_place(at: u64, read: Read<'_>) -> bool {
    at != 0 && read(at, &mut [0])
}

fn is_place_or_none(at: u64, read: Read<'_>) -> bool {
    at == 0 || is_place(at, read)
}

/// The number that the code puts into the register for it, `mov $NUMBER,%eax`, shortly before its
/// `syscall`.
fn by_code(behind: u64, read: Read<'_>) -> Option<c_long> {
    /// As far back as one looks.
    const BEFORE: usize = 32;
    const MOV_EAX: u8 = 0xb8;
    let mut code = [0; BEFORE];
    let at = behind.checked_sub(BEFORE as u64 + 2)?;
    if !read(at, &mut code) {
        return None;
    }
    let found = code.windows(5).rev().find(|bytes| bytes[0] == MOV_EAX && bytes[3..] == [0, 0])?;
    Some(u16::from_le_bytes([found[1], found[2]]).into())
}

#[cfg(test)]
mod tests {
    use std::mem;

    use super::*;

    /// Memory: a time, files for poll, a word, and code.
    const TIME: u64 = 0x1000;
    const FILES_AT: u64 = 0x2000;
    const WORD: u64 = 0x3000;
    const CODE: u64 = 0x4000;

    fn memory(code: [u8; 5]) -> impl Fn(u64, &mut [u8]) -> bool {
        let mut time = [0; 64];
        time[0] = 5;
        let mut files = [0; 64];
        files[..6].copy_from_slice(&[3, 0, 0, 0, 1, 0]);
        // Another file.
        files[8..14].copy_from_slice(&[0xff, 0xff, 0xff, 0xff, 4, 0]);
        let mut all = [0x90; 64];
        all[20..25].copy_from_slice(&code);
        move |at, into| {
            let places = [(TIME, time), (FILES_AT, files), (WORD, [0xff; 64]), (CODE, all)];
            let Some((begin, bytes)) = places.into_iter().find(|(begin, _)| at & !0xfff == *begin)
            else {
                return false;
            };
            let from = (at - begin) as usize;
            let Some(bytes) = bytes.get(from..from + into.len()) else { return false };
            into.copy_from_slice(bytes);
            true
        }
    }

    fn meant(arguments: [u64; 4], code: [u8; 5]) -> Option<c_long> {
        // SAFETY: zeroes are a value of registers, which are numbers only.
        let mut registers: Registers = unsafe { mem::zeroed() };
        [registers.rdi, registers.rsi, registers.rdx, registers.r10] = arguments;
        registers.rip = CODE + 36;
        call_of(&registers, &memory(code))
    }

    #[test]
    fn arguments_say_which_call_it_was() {
        let nothing = [0x90; 5];
        let private =
            |operation: i32| u64::from((operation | libc::FUTEX_PRIVATE_FLAG).cast_unsigned());
        let cases = [
            ([TIME, 0, 0, 0], Some(libc::SYS_nanosleep)),
            ([TIME, TIME, 7, 0], Some(libc::SYS_nanosleep)),
            ([1, 0, TIME, 0], Some(libc::SYS_clock_nanosleep)),
            ([0, 0, TIME, TIME], Some(libc::SYS_clock_nanosleep)),
            ([(-6_i64).cast_unsigned(), 0, TIME, 0], Some(libc::SYS_clock_nanosleep)),
            ([WORD, private(libc::FUTEX_WAIT), 0, TIME], Some(libc::SYS_futex)),
            ([WORD, private(libc::FUTEX_WAIT_BITSET) | 256, 2, TIME], Some(libc::SYS_futex)),
            ([FILES_AT, 2, 3000, 0], Some(libc::SYS_poll)),
            ([FILES_AT, 2, 3000, TIME], Some(libc::SYS_poll)),
            ([FILES_AT, 1, u64::MAX, 0], Some(libc::SYS_poll)),
            ([0, 0, 3000, 0], Some(libc::SYS_poll)),
            // Neither is a place, nor a time.
            ([0, 5, 3000, 0], None),
            ([WORD, 0, 0, 0], Some(libc::SYS_poll)),
            ([WORD, 1 << 13, 0, 0], None),
        ];
        for (arguments, call) in cases {
            assert_eq!(meant(arguments, nothing), call, "{arguments:x?}");
        }
    }

    #[test]
    fn code_says_which_of_two_it_was() {
        // A word that could be a time, waited for by many processes.
        let either = [TIME, 0, 0, TIME];
        let mov = |call: c_long| [0xb8, call.to_le_bytes()[0], 0, 0, 0];
        assert_eq!(meant(either, [0x90; 5]), None);
        for call in [libc::SYS_nanosleep, libc::SYS_futex] {
            assert_eq!(meant(either, mov(call)), Some(call));
        }
        assert_eq!(meant(either, mov(libc::SYS_poll)), None);
    }
}
