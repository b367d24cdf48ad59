//! Streams and events: what is done in order, and what waits for what.
#![expect(unsafe_code, reason = "the driver's functions")]

use cudarc::driver::result as driver;
use cudarc::driver::sys::{self, CUdeviceptr};

use super::device::Device;
use super::error::CardError;

/// What a card does in order.
pub(super) struct Stream(sys::CUstream);

// SAFETY: a handle that any thread may use.
unsafe impl Send for Stream {}

impl Stream {
    pub(super) fn new(device: &Device) -> Result<Self, CardError> {
        let made = driver::stream::create(driver::stream::StreamKind::NonBlocking);
        Ok(Self(device.say("making a stream", made)?))
    }

    pub(super) fn raw(&self) -> sys::CUstream {
        self.0
    }

    /// Waits until all of it is done.
    pub(super) fn wait(&self, device: &Device) -> Result<(), CardError> {
        // SAFETY: a stream that lives.
        device.say("waiting for the card", unsafe { driver::stream::synchronize(self.0) })
    }

    /// What comes next waits for an event.
    pub(super) fn wait_for(&self, device: &Device, event: &Event) -> Result<(), CardError> {
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: a stream and an event that live.
        let done = unsafe { driver::stream::wait_event(self.0, event.raw, flags) };
        device.say("waiting for an event", done)
    }

    /// All bytes 0.
    pub(super) fn zero(
        &self,
        device: &Device,
        at: CUdeviceptr,
        bytes: usize,
    ) -> Result<(), CardError> {
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: memory that the executor has placed.
        device.say("zeroing", unsafe { driver::memset_d8_async(at, 0, bytes, self.0) })
    }

    /// From one place of the card to another.
    pub(super) fn copy(
        &self,
        device: &Device,
        from: CUdeviceptr,
        to: CUdeviceptr,
        bytes: usize,
    ) -> Result<(), CardError> {
        // SAFETY: memory that the executor has placed.
        device.say("copying", unsafe { driver::memcpy_dtod_async(to, from, bytes, self.0) })
    }

    /// From pinned memory to the card. The bytes stay as they are until an event behind it has come.
    pub(super) fn send(
        &self,
        device: &Device,
        bytes: &[u8],
        to: CUdeviceptr,
    ) -> Result<(), CardError> {
        if bytes.is_empty() {
            return Ok(());
        }
        // SAFETY: pinned memory of a slot, which nobody writes before its program has ended.
        device.say("sending inputs", unsafe { driver::memcpy_htod_async(to, bytes, self.0) })
    }

    /// From the card to pinned memory, which nobody reads before an event behind it has come.
    pub(super) fn fetch(
        &self,
        device: &Device,
        from: CUdeviceptr,
        bytes: &mut [u8],
    ) -> Result<(), CardError> {
        if bytes.is_empty() {
            return Ok(());
        }
        // SAFETY: pinned memory of a slot, which nobody reads before its program has ended.
        device.say("fetching outputs", unsafe { driver::memcpy_dtoh_async(bytes, from, self.0) })
    }

    /// What is put into the stream from now on is recorded instead of done.
    pub(super) fn begin_recording(&self, device: &Device) -> Result<(), CardError> {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: a stream that lives.
        device.say("recording a graph", unsafe { driver::stream::begin_capture(self.0, mode) })
    }

    /// What was recorded.
    pub(super) fn end_recording(&self, device: &Device) -> Result<sys::CUgraphExec, CardError> {
        // SAFETY: a stream that records; the graph is destroyed once what can be launched was made of it.
        let made = unsafe {
            driver::stream::end_capture(self.0).and_then(|graph| {
                let flags = sys::CUgraphInstantiate_flags(0);
                let made = driver::graph::instantiate(graph, flags);
                driver::graph::destroy(graph)?;
                made
            })
        };
        device.say("recording a graph", made)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: it was made once, and what runs in it has been waited for.
        let _ = unsafe { driver::stream::destroy(self.0) };
    }
}

/// A place in a stream.
pub(super) struct Event {
    raw: sys::CUevent,
}

// SAFETY: a handle that any thread may use.
unsafe impl Send for Event {}

impl Event {
    pub(super) fn new(device: &Device) -> Result<Self, CardError> {
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING;
        Ok(Self { raw: device.say("making an event", driver::event::create(flags))? })
    }

    /// One whose time is noted.
    pub(super) fn timed(device: &Device) -> Result<Self, CardError> {
        let flags = sys::CUevent_flags::CU_EVENT_DEFAULT;
        Ok(Self { raw: device.say("making an event", driver::event::create(flags))? })
    }

    /// Behind all that is in the stream now.
    pub(super) fn record(&self, device: &Device, stream: &Stream) -> Result<(), CardError> {
        // SAFETY: an event and a stream that live.
        device.say("noting an event", unsafe { driver::event::record(self.raw, stream.0) })
    }

    /// Whether it has come.
    pub(super) fn has_come(&self, device: &Device) -> Result<bool, CardError> {
        // SAFETY: an event that lives.
        match unsafe { driver::event::query(self.raw) } {
            Err(error) if error.0 == sys::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            queried => device.say("asking for an event", queried).map(|()| true),
        }
    }

    /// Waits for it.
    pub(super) fn wait(&self, device: &Device) -> Result<(), CardError> {
        // SAFETY: an event that lives.
        device.say("waiting for the card", unsafe { driver::event::synchronize(self.raw) })
    }

    /// Milliseconds from another event to this one, both past.
    pub(super) fn since(&self, device: &Device, other: &Self) -> Result<f32, CardError> {
        // SAFETY: events that live.
        device.say("reading a time", unsafe { driver::event::elapsed(other.raw, self.raw) })
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: it was made once.
        let _ = unsafe { driver::event::destroy(self.raw) };
    }
}

/// Bytes to the card, waited for.
pub(super) fn send(device: &Device, bytes: &[u8], to: CUdeviceptr) -> Result<(), CardError> {
    if bytes.is_empty() {
        return Ok(());
    }
    // SAFETY: memory that the executor has placed.
    device.say("sending", unsafe { driver::memcpy_htod_sync(to, bytes) })?;
    // The copy has left the host; that it has arrived is not said, and no other stream waits for it.
    device.say("sending", driver::ctx::synchronize())
}

/// Bytes from the card, waited for.
pub(super) fn fetch(device: &Device, from: CUdeviceptr, bytes: &mut [u8]) -> Result<(), CardError> {
    if bytes.is_empty() {
        return Ok(());
    }
    // SAFETY: memory that the executor has placed.
    device.say("fetching", unsafe { driver::memcpy_dtoh_sync(bytes, from) })
}
