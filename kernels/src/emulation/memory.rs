//! Buffers of emulated kernels: each ends where a page begins that nobody may touch.

use std::ffi::{CString, c_char};

use half::bf16;

use crate::executor::Element;
use crate::program::Kind;

/// A buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Id(usize);

/// The buffers of launches that belong together.
#[derive(Debug, Default)]
pub struct Memory {
    buffers: Vec<Buffer>,
}

/// A buffer as `emulate.h` has it.
#[repr(C)]
pub(super) struct Named {
    name: *const c_char,
    start: *mut u8,
    bytes: usize,
}

#[derive(Debug)]
struct Buffer {
    name: CString,
    kind: Kind,
    /// All pages, the two outer ones included.
    pages: *mut u8,
    page_bytes: usize,
    bytes: usize,
}

impl Memory {
    /// A buffer of these values.
    pub fn of<T: Element>(&mut self, name: &str, values: &[T]) -> Id {
        let bytes = bytemuck::cast_slice(values);
        let buffer = Buffer::new(name, T::KIND, bytes.len());
        buffer.write(bytes);
        self.buffers.push(buffer);
        Id(self.buffers.len() - 1)
    }

    /// A buffer of so many elements that were never written: they are no numbers.
    pub fn unwritten<T: Element>(&mut self, name: &str, len: usize) -> Id {
        let bytes = len * size_of::<T>();
        let buffer = Buffer::new(name, T::KIND, bytes);
        buffer.write(&vec![0xff; bytes]);
        self.buffers.push(buffer);
        Id(self.buffers.len() - 1)
    }

    /// A buffer of elements of this kind with these bytes.
    pub(super) fn of_bytes(&mut self, kind: Kind, bytes: &[u8]) -> Id {
        let number = self.buffers.len();
        let buffer = Buffer::new(&format!("argument {number}"), kind, bytes.len());
        buffer.write(bytes);
        self.buffers.push(buffer);
        Id(number)
    }

    #[cfg(feature = "cuda")]
    pub(super) fn write_bytes(&self, id: Id, bytes: &[u8]) {
        self.buffers[id.0].write(bytes);
    }

    pub(super) fn bytes_of(&self, id: Id) -> Vec<u8> {
        self.buffers[id.0].read()
    }

    /// The numbers of a buffer of float32 or bfloat16.
    pub fn floats(&self, id: Id) -> Vec<f32> {
        let bytes = self.buffers[id.0].read();
        match self.buffers[id.0].kind {
            Kind::Bf16 => {
                let values: Vec<bf16> = bytemuck::pod_collect_to_vec(&bytes);
                values.into_iter().map(bf16::to_f32).collect()
            }
            Kind::F32 | Kind::F64 | Kind::U32 | Kind::Bytes => bytemuck::pod_collect_to_vec(&bytes),
        }
    }

    /// The numbers of a buffer of u32.
    pub fn words(&self, id: Id) -> Vec<u32> {
        bytemuck::pod_collect_to_vec(&self.buffers[id.0].read())
    }

    /// The numbers of a buffer of float64.
    pub fn doubles(&self, id: Id) -> Vec<f64> {
        bytemuck::pod_collect_to_vec(&self.buffers[id.0].read())
    }

    /// The letter of its elements in a kernel's signature, as `emulate.h` writes them.
    pub(super) fn letter(&self, id: Id) -> char {
        match self.buffers[id.0].kind {
            Kind::F32 => 'f',
            Kind::F64 => 'd',
            Kind::Bf16 => 'b',
            Kind::U32 => 'u',
            Kind::Bytes => 'c',
        }
    }

    pub(super) fn address(&self, id: Id) -> *mut u8 {
        self.buffers[id.0].start()
    }

    pub(super) fn named(&self) -> Vec<Named> {
        let named = |buffer: &Buffer| Named {
            name: buffer.name.as_ptr(),
            start: buffer.start(),
            bytes: buffer.bytes,
        };
        self.buffers.iter().map(named).collect()
    }

    pub(super) fn contents(&self) -> Vec<Vec<u8>> {
        self.buffers.iter().map(Buffer::read).collect()
    }

    pub(super) fn restore(&self, contents: &[Vec<u8>]) {
        self.buffers.iter().zip(contents).for_each(|(buffer, bytes)| buffer.write(bytes));
    }

    /// Where two contents first differ, in words.
    pub(super) fn difference(&self, one: &[Vec<u8>], other: &[Vec<u8>]) -> Option<String> {
        self.buffers.iter().zip(one).zip(other).find_map(|((buffer, one), other)| {
            let byte = one.iter().zip(other).position(|(a, b)| a != b)?;
            Some(format!("byte {byte} of `{}`", buffer.name.to_string_lossy()))
        })
    }

    /// Until the result is gone nobody may write to those of which `is_read_only` is true.
    pub(super) fn read_only(&self, is_read_only: impl Fn(Id) -> bool) -> ReadOnly<'_> {
        let those = |(at, buffer): (usize, _)| is_read_only(Id(at)).then_some(buffer);
        let buffers: Vec<&Buffer> = self.buffers.iter().enumerate().filter_map(those).collect();
        buffers.iter().for_each(|buffer| buffer.protect(libc::PROT_READ));
        ReadOnly(buffers)
    }
}

/// Buffers that nobody may write to.
pub(super) struct ReadOnly<'a>(Vec<&'a Buffer>);

impl Drop for ReadOnly<'_> {
    fn drop(&mut self) {
        self.0.iter().for_each(|buffer| buffer.protect(libc::PROT_READ | libc::PROT_WRITE));
    }
}

#[expect(unsafe_code, reason = "pages of its own, between two that nobody may touch")]
impl Buffer {
    fn new(name: &str, kind: Kind, bytes: usize) -> Self {
        let inner = bytes.next_multiple_of(page()).max(page());
        let page_bytes = inner + 2 * page();
        let (anywhere, flags) = (std::ptr::null_mut(), libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: new pages, wherever the system puts them.
        let pages = unsafe { libc::mmap(anywhere, page_bytes, libc::PROT_NONE, flags, -1, 0) };
        assert_ne!(pages, libc::MAP_FAILED, "{bytes} bytes for `{name}`");
        let name = CString::new(name).expect("a name without 0");
        let buffer = Self { name, kind, pages: pages.cast(), page_bytes, bytes };
        buffer.protect(libc::PROT_READ | libc::PROT_WRITE);
        buffer
    }

    /// It ends where the last page begins, to the element.
    fn start(&self) -> *mut u8 {
        self.pages.wrapping_add(self.page_bytes - page() - self.bytes)
    }

    fn protect(&self, how: i32) {
        let inner = self.pages.wrapping_add(page());
        // SAFETY: pages of this buffer.
        let done = unsafe { libc::mprotect(inner.cast(), self.page_bytes - 2 * page(), how) };
        assert_eq!(done, 0, "pages of {:?}", self.name);
    }

    fn read(&self) -> Vec<u8> {
        // SAFETY: its bytes, which were all written when it was made.
        unsafe { std::slice::from_raw_parts(self.start(), self.bytes) }.to_vec()
    }

    fn write(&self, bytes: &[u8]) {
        assert_eq!(bytes.len(), self.bytes, "bytes of {:?}", self.name);
        // SAFETY: its bytes; nobody holds a reference to them.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.start(), self.bytes) };
    }
}

impl Drop for Buffer {
    #[expect(unsafe_code, reason = "pages of its own")]
    fn drop(&mut self) {
        // SAFETY: all its pages, which nobody reads any more.
        unsafe { libc::munmap(self.pages.cast(), self.page_bytes) };
    }
}

#[expect(unsafe_code, reason = "a function of the system")]
fn page() -> usize {
    // SAFETY: it reads a number.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(bytes).expect("pages have a size")
}
