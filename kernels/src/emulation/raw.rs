//! The emulation's two functions, as `emulation/blocks.cpp` has them.

use std::ffi::{CStr, c_char, c_void};

use super::memory::Named;

/// A launch as `emulate.h` has it.
#[repr(C)]
struct Launch {
    blocks: [u32; 3],
    threads: [u32; 3],
    memory_bytes: usize,
    order: u64,
    buffers: *const Named,
    buffer_count: usize,
    complaint: *mut c_char,
    complaint_bytes: usize,
    few: u32,
}

#[cfg(emulated)]
#[expect(unsafe_code, reason = "functions of another language")]
unsafe extern "C" {
    fn emulate_signature(name: *const c_char, to: *mut c_char, bytes: usize) -> bool;
    fn emulate_launch(
        name: *const c_char,
        launch: *const Launch,
        arguments: *const *mut c_void,
    ) -> bool;
}

#[cfg(not(emulated))]
#[expect(unsafe_code, reason = "as above")]
unsafe fn emulate_signature(_: *const c_char, _: *mut c_char, _: usize) -> bool {
    false
}

#[cfg(not(emulated))]
#[expect(unsafe_code, reason = "as above")]
unsafe fn emulate_launch(_: *const c_char, _: *const Launch, _: *const *mut c_void) -> bool {
    false
}

/// The kinds of the parameters of a kernel; none where there is no such.
pub(super) fn signature(name: &CStr, bytes: usize) -> Option<String> {
    let mut to = vec![0_u8; bytes];
    #[expect(unsafe_code, reason = "it writes no more than it is told there is room for")]
    // SAFETY: the name ends with 0, `to` has room for `bytes`.
    let known = unsafe { emulate_signature(name.as_ptr(), to.as_mut_ptr().cast(), bytes) };
    known.then(|| text(&to))
}

/// Runs a kernel that there is, in one order.
///
/// # Errors
/// What was found.
pub(super) fn launch(
    name: &CStr,
    (blocks, threads, memory_bytes): ([u32; 3], [u32; 3], usize),
    order: u64,
    buffers: &[Named],
    arguments: &[*mut c_void],
    bytes: usize,
) -> Result<(), String> {
    let mut complaint = vec![0_u8; bytes];
    let launch = Launch {
        blocks,
        threads,
        memory_bytes,
        order,
        buffers: buffers.as_ptr(),
        buffer_count: buffers.len(),
        complaint: complaint.as_mut_ptr().cast(),
        complaint_bytes: bytes,
        few: 0,
    };
    #[expect(unsafe_code, reason = "a function of another language")]
    // SAFETY: the arguments were compared with the kernel's parameters, buffers outlive the call, and a touch
    // outside of them ends the launch.
    let sound = unsafe { emulate_launch(name.as_ptr(), &raw const launch, arguments.as_ptr()) };
    if sound { Ok(()) } else { Err(text(&complaint)) }
}

/// What stands before the first 0.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}
