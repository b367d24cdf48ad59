//! How much memory something takes at most while it runs: foreign bytes may take as much as they
//! are long, times something, and never what they only announce.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

/// What `action` returns, and the most bytes it held at a time beyond those held before. What other
/// threads take for it is not counted.
pub(crate) fn peak<T>(action: impl FnOnce() -> T) -> (T, usize) {
    let before = HELD.get();
    PEAK.set(before);
    let result = action();
    (result, (PEAK.get() - before).unsigned_abs())
}

struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

fn count(bytes: isize) {
    let held = HELD.get() + bytes;
    HELD.set(held);
    PEAK.set(PEAK.get().max(held));
}

#[expect(unsafe_code, reason = "nothing but an allocator sees every allocation")]
// SAFETY: every call goes to the system's allocator as it came. The counters are plain numbers of the
// thread, which need neither memory nor a destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc_zeroed(layout) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_held_at_a_time_is_counted() {
        let (_, peak) = peak(|| {
            drop(vec![1u8; 5000]);
            drop(vec![1u8; 3000]);
            vec![1u8; 100]
        });
        assert_eq!(peak, 5000);
    }
}
