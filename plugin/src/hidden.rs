//! Functions of the C library that this one's hide.

use std::ffi::CStr;
use std::ptr;
use std::sync::OnceLock;

use libc::c_int;

/// One of them; `F` is the type of a pointer to it.
pub struct Hidden<F> {
    name: &'static CStr,
    found: OnceLock<Option<F>>,
}

impl<F: Copy> Hidden<F> {
    pub const fn new(name: &'static CStr) -> Self {
        Self { name, found: OnceLock::new() }
    }

    /// The function.
    ///
    /// # Safety
    /// `F` is what its type says.
    pub unsafe fn get(&self) -> Option<F> {
        *self.found.get_or_init(|| {
            // SAFETY: the name ends in a zero byte.
            let found = unsafe { libc::dlsym(libc::RTLD_NEXT, self.name.as_ptr()) };
            // SAFETY: a pointer to a function is as large as one to data (POSIX, dlsym), and the
            // caller knows its type.
            (!found.is_null()).then(|| unsafe { ptr::read((&raw const found).cast::<F>()) })
        })
    }
}

/// What is said where there is none.
pub fn missing() -> c_int {
    // SAFETY: the C library's errno of this thread.
    unsafe { *libc::__errno_location() = libc::ENOSYS };
    -1
}
