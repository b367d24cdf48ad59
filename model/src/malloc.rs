//! glibc's allocator told to keep what it has: every intermediate tensor is otherwise a fresh
//! mapping, and a third of a training step goes into page faults.

/// Keeps freed memory in the process instead of returning it to the system, and large tensors on
/// the heap instead of one mapping each. Call it first in `main`; calling it again is harmless.
///
/// Does nothing where the C library is not glibc.
pub fn tune() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        const TOP_PAD: libc::c_int = 256 << 20;
        let settings = [
            (libc::M_MMAP_THRESHOLD, libc::c_int::MAX),
            (libc::M_TRIM_THRESHOLD, libc::c_int::MAX),
            (libc::M_TOP_PAD, TOP_PAD),
            (libc::M_ARENA_MAX, 1),
        ];
        for (parameter, value) in settings {
            // A setting that this glibc does not know is refused by it and changes nothing.
            #[expect(unsafe_code, reason = "mallopt is only reachable through the C library")]
            // SAFETY: mallopt takes two integers by value and keeps no pointer; it locks the
            // allocator itself, so it may be called while other threads allocate.
            unsafe {
                libc::mallopt(parameter, value);
            }
        }
    }
}
