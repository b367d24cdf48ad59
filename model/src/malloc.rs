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

/// Asks the system to back these values with pages of 2 MiB where it can: their first touch then costs
/// a five-hundredth of the page faults. Only memory of some size that was not touched yet gains.
///
/// Does nothing where the system is not Linux.
pub(crate) fn ask_for_large_pages<T>(values: &[T]) {
    #[cfg(target_os = "linux")]
    {
        const LARGE: usize = 2 << 20;
        let start = values.as_ptr().addr().next_multiple_of(LARGE);
        let end = (values.as_ptr().addr() + size_of_val(values)) / LARGE * LARGE;
        if end <= start {
            return;
        }
        let first = values.as_ptr().cast::<u8>().wrapping_add(start - values.as_ptr().addr());
        // A refusal leaves pages as they are.
        #[expect(unsafe_code, reason = "madvise is only reachable through the C library")]
        // SAFETY: the range lies within `values`, and this advice changes no content.
        unsafe {
            libc::madvise(first.cast_mut().cast(), end - start, libc::MADV_HUGEPAGE);
        }
    }
}
