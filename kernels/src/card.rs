//! A card: programs carried out by the kernels of `cuda/` and the matrix products of cuBLASLt.
//!
//! Everything is put into one stream; the host waits for nothing but what a program puts out. Inputs and outputs have
//! several places, in pinned memory and on the card, and streams of their own, so that those of one program travel
//! while another computes. A program's own buffers lie in one piece of memory that grows to the largest program's need
//! and stays. A program that comes a second time is recorded as a graph, and launched at once from then on.

mod device;
mod error;
mod graphs;
mod kernels;
mod products;
mod stream;
mod timeline;

use cudarc::driver::sys::CUdeviceptr;

use crate::counting::{SLOTS, travel_bytes};
use crate::executor::{Element, Executor, Inputs, Outputs, Times};
use crate::program::{Home, Kind, Places, Product, Program, Step, View};
use device::{Device, Memory, Pinned};
pub use error::CardError;
use graphs::{Graph, Graphs};
use kernels::Kernels;
use products::{Addresses, Products};
use stream::{Event, Stream};
use timeline::Timeline;

/// A card, and what lies on it. It belongs to the thread that holds it.
///
/// Its fields go in this order: what uses the device before the device.
pub struct Card {
    graphs: Graphs,
    products: Products,
    kernels: Kernels,
    slots: Vec<Slot>,
    passing: Memory,
    kept: Vec<Memory>,
    timeline: Option<Timeline>,
    compute: Stream,
    /// One for each direction: what is sent does not wait for what is fetched.
    sends: Stream,
    fetches: Stream,
    device: Device,
}

/// Where the inputs and outputs of one program travel.
struct Slot {
    inputs: Travel,
    outputs: Travel,
    /// Inputs are there; all is computed; outputs are back.
    sent: Event,
    computed: Event,
    fetched: Event,
    busy: bool,
}

/// Pinned memory and as much on the card.
struct Travel {
    host: Pinned,
    card: Memory,
}

impl Travel {
    fn new(device: &Device, bytes: usize) -> Result<Self, CardError> {
        Ok(Self {
            host: device.pinned(bytes)?,
            card: device.allocate("inputs and outputs", bytes)?,
        })
    }

    fn is_short_of(&self, bytes: usize) -> bool {
        bytes > self.card.bytes
    }

    /// Room for so many bytes.
    fn grow(&mut self, device: &Device, bytes: usize) -> Result<(), CardError> {
        if self.is_short_of(bytes) {
            *self = Self::new(device, travel_bytes(bytes))?;
        }
        Ok(())
    }
}

/// Free bytes of the memory of the card of this number, and all: what this process has opened of it counts as taken.
///
/// # Errors
/// [`CardError`]: what was found and what is needed.
pub fn memory(ordinal: usize) -> Result<[usize; 2], CardError> {
    Device::open(ordinal)?.memory()
}

/// A program that runs.
#[derive(Debug)]
pub struct Running {
    slot: usize,
    output_bytes: usize,
}

impl Card {
    /// The card of this number.
    ///
    /// # Errors
    /// [`CardError`]: what was found and what is needed.
    pub fn open(ordinal: usize) -> Result<Self, CardError> {
        let device = Device::open(ordinal)?;
        let slot = || {
            Ok::<_, CardError>(Slot {
                inputs: Travel::new(&device, travel_bytes(0))?,
                outputs: Travel::new(&device, travel_bytes(0))?,
                sent: Event::new(&device)?,
                computed: Event::new(&device)?,
                fetched: Event::new(&device)?,
                busy: false,
            })
        };
        let slots = (0..SLOTS).map(|_| slot()).collect::<Result<_, _>>()?;
        Ok(Self {
            graphs: Graphs::default(),
            products: Products::new(&device)?,
            kernels: Kernels::load(&device)?,
            slots,
            passing: device.allocate("a program's buffers", 0)?,
            kept: Vec::new(),
            timeline: None,
            compute: Stream::new(&device)?,
            sends: Stream::new(&device)?,
            fetches: Stream::new(&device)?,
            device,
        })
    }

    /// Gives all kept memory back; what was in it is gone.
    #[cfg(feature = "emulation")]
    pub(crate) fn forget_kept(&mut self) {
        self.graphs.forget();
        self.kept.clear();
    }

    /// Waits for all that runs.
    fn settle(&self) -> Result<(), CardError> {
        self.compute.wait(&self.device)?;
        self.sends.wait(&self.device)?;
        self.fetches.wait(&self.device)
    }

    /// Memory for a program's buffers.
    fn make_room(
        &mut self,
        program: &Program,
        places: &Places,
        slot: usize,
    ) -> Result<(), CardError> {
        if places.bytes > self.passing.bytes {
            self.settle()?;
            self.graphs.forget();
            // The old piece goes first: both together may not fit.
            self.passing = self.device.allocate("a program's buffers", 0)?;
            self.passing = self.device.allocate("a program's buffers", places.bytes)?;
        }
        let Slot { inputs, outputs, .. } = &mut self.slots[slot];
        if inputs.is_short_of(program.input_bytes) || outputs.is_short_of(program.output_bytes) {
            // Before anything moves: what comes next may fail.
            self.graphs.forget();
        }
        inputs.grow(&self.device, program.input_bytes)?;
        outputs.grow(&self.device, program.output_bytes)
    }

    /// Puts a program's steps into the stream.
    fn steps(&mut self, program: &Program, at: &At<'_>) -> Result<(), CardError> {
        let stream = self.compute.raw();
        for (number, step) in program.steps.iter().enumerate() {
            if let Some(timeline) = &mut self.timeline {
                timeline.begin(&self.device, &self.compute, program, number)?;
            }
            match step {
                Step::Call(call) => {
                    self.kernels.launch(&self.device, stream, call, |view| at.address(view))?;
                }
                Step::Product(of) => {
                    let Product { a, b, into, plus, .. } = of;
                    let addresses = Addresses {
                        a: at.address(&a.view),
                        b: at.address(&b.view),
                        into: at.address(&into.view),
                        plus: plus.as_ref().map(|view| at.address(view)),
                    };
                    self.products.launch(&self.device, stream, of, addresses)?;
                }
                Step::Zero(view) => {
                    self.compute.zero(&self.device, at.address(view), view.bytes())?;
                }
                Step::Copy { from, to } => {
                    let [from_at, to_at] = [from, to].map(|view| at.address(view));
                    self.compute.copy(&self.device, from_at, to_at, from.bytes())?;
                }
            }
        }
        if let Some(timeline) = &mut self.timeline {
            timeline.end(&self.device, &self.compute)?;
        }
        Ok(())
    }

    /// The steps as a graph where the program has come before, one by one where not.
    fn compute(
        &mut self,
        program: &Program,
        places: &Places,
        slot: usize,
    ) -> Result<(), CardError> {
        let kept: Vec<CUdeviceptr> = self.kept.iter().map(|memory| memory.start).collect();
        let at = At {
            kept: &kept,
            passing: self.passing.start,
            places,
            input: self.slots[slot].inputs.card.start,
            output: self.slots[slot].outputs.card.start,
        };
        if self.timeline.is_some() || !self.graphs.has_run(program, slot) {
            return self.steps(program, &at);
        }
        if !self.graphs.is_recorded(program, slot) {
            self.compute.begin_recording(&self.device)?;
            let recorded = self.steps(program, &at);
            // The recording ends whatever became of it.
            let graph = self.compute.end_recording(&self.device).map(Graph::of);
            recorded?;
            match graph {
                // A graph takes memory that nobody counted; its steps take none.
                Err(error) if error.is_out_of_memory() => return self.steps(program, &at),
                graph => self.graphs.record(program, slot, graph?),
            }
        }
        self.graphs.launch(&self.device, program, slot, &self.compute)
    }

    /// Inputs to the card, the steps behind them, outputs back behind these.
    fn launch(
        &mut self,
        program: &Program,
        inputs: &Inputs,
        places: &Places,
        slot: usize,
    ) -> Result<(), CardError> {
        let Slot { inputs: travel, sent, .. } = &mut self.slots[slot];
        let bytes = inputs.bytes();
        travel.host.slice_mut(bytes.len()).copy_from_slice(bytes);
        self.sends.send(&self.device, travel.host.slice(bytes.len()), travel.card.start)?;
        sent.record(&self.device, &self.sends)?;
        self.compute.wait_for(&self.device, sent)?;
        self.compute(program, places, slot)?;

        let Slot { outputs: travel, computed, fetched, .. } = &mut self.slots[slot];
        let output_bytes = program.output_bytes;
        computed.record(&self.device, &self.compute)?;
        self.fetches.wait_for(&self.device, computed)?;
        self.fetches.fetch(&self.device, travel.card.start, travel.host.slice_mut(output_bytes))?;
        fetched.record(&self.device, &self.fetches)
    }

    fn kept_at(&self, view: View) -> CUdeviceptr {
        match view.home {
            Home::Kept(at) => self.kept[at].start + view.start as u64,
            Home::Passing(_) | Home::Input | Home::Output => {
                unreachable!("kept memory alone outlives its program: {view:?}")
            }
        }
    }
}

/// Where everything lies while one program runs.
struct At<'a> {
    kept: &'a [CUdeviceptr],
    passing: CUdeviceptr,
    places: &'a Places,
    input: CUdeviceptr,
    output: CUdeviceptr,
}

impl At<'_> {
    fn address(&self, view: &View) -> CUdeviceptr {
        let home = match view.home {
            Home::Kept(at) => self.kept[at],
            Home::Passing(at) => self.passing + self.places.starts[at] as u64,
            Home::Input => self.input,
            Home::Output => self.output,
        };
        home + view.start as u64
    }
}

impl Executor for Card {
    type Error = CardError;
    type Running = Running;

    fn name(&self) -> String {
        format!("cuda:{} ({})", self.device.ordinal, self.device.name)
    }

    fn block_memory(&self) -> u32 {
        u32::try_from(self.device.block_memory).unwrap_or(0)
    }

    fn is_out_of_memory(error: &CardError) -> bool {
        error.is_out_of_memory()
    }

    fn is_lost(error: &CardError) -> bool {
        error.is_lost()
    }

    fn keep(&mut self, name: &str, kind: Kind, len: usize) -> Result<View, CardError> {
        self.device.be_current()?;
        let memory = self.device.allocate(name, len * kind.bytes())?;
        self.compute.zero(&self.device, memory.start, memory.bytes)?;
        self.kept.push(memory);
        Ok(View { home: Home::Kept(self.kept.len() - 1), kind, start: 0, len })
    }

    fn write<T: Element>(&mut self, view: View, values: &[T]) -> Result<(), CardError> {
        assert_eq!((view.kind, view.len), (T::KIND, values.len()), "what is written");
        self.device.be_current()?;
        self.settle()?;
        stream::send(&self.device, bytemuck::cast_slice(values), self.kept_at(view))
    }

    fn read<T: Element>(&mut self, view: View) -> Result<Vec<T>, CardError> {
        assert_eq!(view.kind, T::KIND, "what is read");
        self.device.be_current()?;
        self.settle()?;
        let mut values = vec![T::zeroed(); view.len];
        let bytes = bytemuck::cast_slice_mut(&mut values);
        stream::fetch(&self.device, self.kept_at(view), bytes)?;
        Ok(values)
    }

    fn start(&mut self, program: &Program, inputs: &Inputs) -> Result<Running, CardError> {
        self.device.be_current()?;
        // The first that is free: who starts one at a time uses one, whose graphs come again.
        let free = self.slots.iter().position(|slot| !slot.busy);
        let slot = free.unwrap_or_else(|| panic!("{SLOTS} programs run already"));
        let places = self.graphs.comes(program, slot);
        self.make_room(program, &places, slot)?;

        let output_bytes = program.output_bytes;
        if let Err(error) = self.launch(program, inputs, &places, slot) {
            // What was begun may still read and write this slot, which counts as free.
            self.settle()?;
            return Err(error);
        }
        self.graphs.ran(program, slot);
        self.slots[slot].busy = true;
        Ok(Running { slot, output_bytes })
    }

    fn has_ended(&mut self, running: &Running) -> Result<bool, CardError> {
        self.device.be_current()?;
        self.slots[running.slot].fetched.has_come(&self.device)
    }

    fn finish(&mut self, running: Running) -> Result<Outputs, CardError> {
        self.device.be_current()?;
        let slot = &mut self.slots[running.slot];
        slot.busy = false;
        slot.fetched.wait(&self.device)?;
        Ok(Outputs::new(slot.outputs.host.slice(running.output_bytes).to_vec()))
    }

    fn taken(&self) -> Result<Option<u64>, CardError> {
        self.device.be_current()?;
        let [free, total] = self.device.memory()?;
        Ok(Some((total - free) as u64))
    }

    /// Graphs are not used meanwhile.
    fn note_times(&mut self) {
        self.timeline = Some(Timeline::default());
    }

    fn take_times(&mut self) -> Option<Times> {
        let timeline = self.timeline.take()?;
        // What runs still is noted too.
        self.device.be_current().and_then(|()| self.settle()).ok()?;
        timeline.times(&self.device)
    }
}

impl Drop for Card {
    fn drop(&mut self) {
        // What runs may still use what goes now. Where the card has failed there is nothing to wait for.
        let _ = self.device.be_current().and_then(|()| self.settle());
    }
}

#[cfg(test)]
#[path = "card_tests.rs"]
mod tests;
