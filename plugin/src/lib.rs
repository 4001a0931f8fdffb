//! What ocicle loads into CRIU: for what CRIU itself does not do.
//!
//! At a dump it sets aside the open files that CRIU cannot dump ([`aside`]), and has calls go on that
//! sleep (`sleepers`). At a restore it has processes take the locks again that CRIU loses ([`locks`]).
//!
//! One library in two roles, which CRIU's own build offers to anybody: a *plugin* (criu-plugin.h), in
//! the directory that `libdir` names; and *preloaded*, for what CRIU asks no plugin. The linker knows
//! it for the same file, and loads it once.
//!
//! What there is to do, ocicle tells ([`told`]). This runs inside CRIU while a container stands still,
//! and cannot panic.

mod arch;
mod aside;
mod hidden;
mod locks;
#[cfg(target_arch = "x86_64")]
mod restarted;
#[cfg(target_arch = "x86_64")]
mod sleepers;
mod told;
mod tracee;

use std::ffi::{c_char, c_int, c_uint};

/// Runs when the library is loaded, before CRIU's `main`.
#[used]
#[unsafe(link_section = ".init_array")]
static BEGIN: extern "C" fn() = begin;

extern "C" fn begin() {
    told::begin();
}

/// `cr_plugin_desc_t` of criu-plugin.h, for a plugin that knows the first hooks only.
#[repr(C)]
pub struct Description {
    name: *const c_char,
    init: Option<extern "C" fn(c_int) -> c_int>,
    exit: Option<extern "C" fn(c_int, c_int)>,
    version: c_uint,
    max_hooks: c_uint,
    hooks: [Hook; HOOKS],
}

/// A pointer to a function, whose type its place says.
#[derive(Clone, Copy)]
#[repr(C)]
union Hook {
    none: usize,
    file: extern "C" fn(c_int, c_int) -> c_int,
    process: extern "C" fn(c_int) -> c_int,
}

/// How many of `CR_PLUGIN_HOOK__…` are told of: up to the last of ours.
const HOOKS: usize = RESUME_DEVICES_LATE + 1;
/// CR_PLUGIN_HOOK__DUMP_EXT_FILE
const DUMP_EXT_FILE: usize = 2;
/// CR_PLUGIN_HOOK__RESUME_DEVICES_LATE
const RESUME_DEVICES_LATE: usize = 9;

// SAFETY: nobody writes to it, and the name it points to is a constant.
unsafe impl Sync for Description {}

/// What CRIU looks for in a plugin.
#[unsafe(no_mangle)]
pub static CR_PLUGIN_DESC: Description = Description {
    name: c"ocicle".as_ptr(),
    init: None,
    exit: None,
    // CRIU_PLUGIN_GEN_VERSION(0, 2, 0)
    version: 2 << 8,
    max_hooks: HOOKS as c_uint,
    hooks: hooks(),
};

const fn hooks() -> [Hook; HOOKS] {
    let mut hooks = [Hook { none: 0 }; HOOKS];
    hooks[DUMP_EXT_FILE] = Hook { file: dump_file };
    hooks[RESUME_DEVICES_LATE] = Hook { process: resume };
    hooks
}

/// Says yes to a file that is set aside, and to no other: -ENOTSUP leaves those to whoever else
/// there is.
extern "C" fn dump_file(fd: c_int, _id: c_int) -> c_int {
    if aside::is_set_aside(fd) { 0 } else { -libc::ENOTSUP }
}

/// A restored process stands before its first step, as all others do, and this CRIU traces their
/// threads (`restore_root_task` in criu/cr-restore.c). No other plugin is cut off by that answer.
extern "C" fn resume(process: c_int) -> c_int {
    locks::take_again(process);
    -libc::ENOTSUP
}
