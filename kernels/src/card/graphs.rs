//! Programs that came more than once, recorded: one launch in place of hundreds.
#![expect(unsafe_code, reason = "the driver's functions")]

use std::sync::Arc;

use cudarc::driver::result as driver;
use cudarc::driver::sys;

use super::device::Device;
use super::error::CardError;
use super::stream::Stream;
use crate::program::{Places, Program};

/// Programs that are remembered; the one that came longest ago is forgotten first.
const REMEMBERED: usize = 16;
/// Steps of a program that is worth it: fewer are launched as soon as a graph of them is.
const WORTH_IT: usize = 16;

/// What came, the latest last.
#[derive(Default)]
pub(super) struct Graphs(Vec<Known>);

struct Known {
    program: Program,
    /// Addresses of inputs and outputs are a slot's.
    slot: usize,
    places: Arc<Places>,
    has_run: bool,
    graph: Option<Graph>,
}

/// What can be launched.
pub(super) struct Graph(sys::CUgraphExec);

impl Graph {
    pub(super) fn of(recorded: sys::CUgraphExec) -> Self {
        Self(recorded)
    }
}

// SAFETY: a handle that any thread may use.
unsafe impl Send for Graph {}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: it was made once; the driver keeps it until what runs of it has ended.
        let _ = unsafe { driver::graph::exec_destroy(self.0) };
    }
}

impl Graphs {
    /// Takes note of a program that comes; where its buffers lie.
    pub(super) fn comes(&mut self, program: &Program, slot: usize) -> Arc<Places> {
        if program.steps.len() < WORTH_IT {
            return Arc::new(Places::of(program));
        }
        let known = match self.place(program, slot) {
            Some(at) => self.0.remove(at),
            None => {
                let places = Arc::new(Places::of(program));
                Known { program: program.clone(), slot, places, has_run: false, graph: None }
            }
        };
        let places = Arc::clone(&known.places);
        if self.0.len() == REMEMBERED {
            self.0.remove(0);
        }
        self.0.push(known);
        places
    }

    /// Whether it was carried out before, so that its kernels are loaded: nothing is loaded while it is recorded.
    pub(super) fn has_run(&self, program: &Program, slot: usize) -> bool {
        self.place(program, slot).is_some_and(|at| self.0[at].has_run)
    }

    /// Takes note of a program that was carried out.
    pub(super) fn ran(&mut self, program: &Program, slot: usize) {
        if let Some(at) = self.place(program, slot) {
            self.0[at].has_run = true;
        }
    }

    pub(super) fn is_recorded(&self, program: &Program, slot: usize) -> bool {
        self.place(program, slot).is_some_and(|at| self.0[at].graph.is_some())
    }

    /// Keeps what was recorded of a program that came.
    pub(super) fn record(&mut self, program: &Program, slot: usize, graph: Graph) {
        if let Some(at) = self.place(program, slot) {
            self.0[at].graph = Some(graph);
        }
    }

    /// Puts a recorded program into a stream.
    pub(super) fn launch(
        &self,
        device: &Device,
        program: &Program,
        slot: usize,
        stream: &Stream,
    ) -> Result<(), CardError> {
        let known = self.place(program, slot).and_then(|at| self.0[at].graph.as_ref());
        let graph = known.expect("it was recorded");
        // SAFETY: a graph and a stream that live.
        device.say("launching a graph", unsafe { driver::graph::launch(graph.0, stream.raw()) })
    }

    /// Forgets what was recorded: memory has moved.
    pub(super) fn forget(&mut self) {
        self.0.iter_mut().for_each(|known| known.graph = None);
    }

    fn place(&self, program: &Program, slot: usize) -> Option<usize> {
        self.0.iter().rposition(|known| known.slot == slot && known.program == *program)
    }
}
