//! What programs take of a card's memory, counted by an executor that has none: nothing is kept and nothing runs, no
//! driver is asked. The rules by which a card takes memory stand here, and the card goes by them.

use std::collections::BTreeMap;

use crate::executor::{Element, Executor, Inputs, Outputs};
use crate::program::{Home, Kind, Places, Program, View};

/// Memory of the card that the kernels of its library of products may use, in bytes: what NVIDIA recommends for Hopper.
pub const WORKSPACE_BYTES: usize = 32 << 20;

/// Programs that may be started at a time, each with places for its inputs and outputs: a step's two, the next step's
/// first, and one that is asked for between them.
pub const SLOTS: usize = 4;

/// Places for inputs or outputs are made at least so large, in bytes.
const LEAST_TRAVEL_BYTES: usize = 1 << 20;

/// How large a place for so many bytes of inputs or outputs is made.
pub fn travel_bytes(bytes: usize) -> usize {
    bytes.max(LEAST_TRAVEL_BYTES).next_power_of_two()
}

/// What was asked for so far, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// What stays, by the name it was asked for with.
    pub kept: Vec<(String, usize)>,
    /// The programs' own buffers, all in one piece as large as the largest program's.
    pub passing: usize,
    /// Of the program that takes the most: how much of it is of each name where most is held. Together at most
    /// [`Self::passing`]; the rest lies between buffers.
    pub at_peak: BTreeMap<&'static str, usize>,
    /// Places for inputs and outputs, those of all slots.
    pub travelling: usize,
}

impl Counted {
    /// All of it, with the workspace of products.
    pub fn total(&self) -> usize {
        let kept: usize = self.kept.iter().map(|(_, bytes)| bytes).sum();
        kept + self.passing + self.travelling + WORKSPACE_BYTES
    }
}

/// There is no room.
#[derive(Debug, thiserror::Error)]
#[error("{what} takes {wanted} bytes and {free} of {room} are free")]
pub struct NoRoom {
    what: String,
    wanted: usize,
    free: usize,
    room: usize,
}

/// An executor that counts.
#[derive(Debug, Default)]
pub struct Counting {
    counted: Counted,
    /// The largest inputs and outputs so far, in bytes.
    travel: [usize; 2],
    /// What there is, in bytes, where that is bounded.
    room: Option<usize>,
}

impl Counting {
    /// One that refuses what goes beyond so many bytes.
    pub fn with_room(room: usize) -> Self {
        Self { room: Some(room), ..Self::default() }
    }

    /// What was asked for so far.
    pub fn counted(&self) -> Counted {
        Counted { travelling: self.travelling(), ..self.counted.clone() }
    }

    fn travelling(&self) -> usize {
        SLOTS * self.travel.map(travel_bytes).iter().sum::<usize>()
    }

    /// Refuses what is too much; `before` is what was taken before that.
    fn check(&self, what: &str, before: usize) -> Result<(), NoRoom> {
        let Some(room) = self.room else { return Ok(()) };
        let total = self.counted().total();
        if total <= room {
            return Ok(());
        }
        let free = room.saturating_sub(before);
        Err(NoRoom { what: what.to_owned(), wanted: total - before, free, room })
    }
}

impl Executor for Counting {
    type Error = NoRoom;
    type Running = Outputs;

    fn name(&self) -> String {
        "counting".to_owned()
    }

    fn block_memory(&self) -> u32 {
        u32::MAX
    }

    fn is_out_of_memory(_: &NoRoom) -> bool {
        true
    }

    fn is_lost(_: &NoRoom) -> bool {
        false
    }

    fn keep(&mut self, name: &str, kind: Kind, len: usize) -> Result<View, NoRoom> {
        let before = self.counted().total();
        self.counted.kept.push((name.to_owned(), len * kind.bytes()));
        if let Err(error) = self.check(name, before) {
            self.counted.kept.pop();
            return Err(error);
        }
        Ok(View { home: Home::Kept(self.counted.kept.len() - 1), kind, start: 0, len })
    }

    fn write<T: Element>(&mut self, _: View, _: &[T]) -> Result<(), NoRoom> {
        Ok(())
    }

    /// Zeros.
    fn read<T: Element>(&mut self, view: View) -> Result<Vec<T>, NoRoom> {
        Ok(vec![T::zeroed(); view.len])
    }

    /// Counts what it takes; what it puts out is zeros.
    fn start(&mut self, program: &Program, _: &Inputs) -> Result<Outputs, NoRoom> {
        let before = (self.counted().total(), self.counted.clone(), self.travel);
        let places = Places::of(program);
        if places.bytes > self.counted.passing {
            self.counted.passing = places.bytes;
            self.counted.at_peak = places.at_peak;
        }
        let [inputs, outputs] = self.travel;
        self.travel = [inputs.max(program.input_bytes), outputs.max(program.output_bytes)];
        if let Err(error) = self.check("a program's buffers", before.0) {
            (self.counted, self.travel) = (before.1, before.2);
            return Err(error);
        }
        Ok(Outputs::new(vec![0; program.output_bytes]))
    }

    fn has_ended(&mut self, _: &Outputs) -> Result<bool, NoRoom> {
        Ok(true)
    }

    fn finish(&mut self, running: Outputs) -> Result<Outputs, NoRoom> {
        Ok(running)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Buffers of so many bytes, each touched by a step of its own; those of `together` by the first step too.
    fn program(buffers: &[(&'static str, usize)], together: usize) -> Program {
        let mut program = Program::default();
        let views: Vec<View> = buffers
            .iter()
            .map(|&(name, bytes)| program.passing(name, Kind::U32, bytes / 4))
            .collect();
        views[..together].iter().for_each(|view| program.zero(*view));
        views.iter().for_each(|view| program.zero(*view));
        program
    }

    #[test]
    fn what_is_kept_and_the_largest_program_are_counted() {
        let mut on = Counting::default();
        // Places for inputs and outputs, four times each, and the workspace are there from the beginning.
        let begin = WORKSPACE_BYTES + 8 * (1 << 20);
        assert_eq!(on.counted().total(), begin);
        let view = on.keep("weights", Kind::Bf16, 1000).unwrap();
        on.keep("moments", Kind::F32, 10).unwrap();
        assert_eq!(on.read::<half::bf16>(view).unwrap().len(), 1000);
        let kept = [("weights".to_owned(), 2000), ("moments".to_owned(), 40)];
        assert_eq!((on.counted().kept, on.counted().total()), (kept.into(), begin + 2040));
        // Of buffers that live at a time all count, of others the largest: 512 and 256, then 1024.
        on.run(&program(&[("a", 512), ("b", 256), ("c", 512)], 2), &Inputs::default()).unwrap();
        assert_eq!(on.counted().passing, 768);
        on.run(&program(&[("d", 1024)], 1), &Inputs::default()).unwrap();
        on.run(&program(&[("e", 256)], 1), &Inputs::default()).unwrap();
        let counted = on.counted();
        assert_eq!((counted.passing, counted.at_peak), (1024, BTreeMap::from([("d", 1024)])));
    }

    #[test]
    fn inputs_and_outputs_have_a_place_in_each_slot() {
        let mut on = Counting::default();
        let mut program = Program::default();
        program.input(Kind::U32, 3 << 18);
        let out = program.output(Kind::F32, 5);
        let outputs = on.run(&program, &Inputs::default()).unwrap();
        assert_eq!(outputs.get::<f32>(out), [0.0; 5]);
        // 3 MiB become 4, a few bytes 1.
        assert_eq!(on.counted().travelling, 4 * (4 << 20) + 4 * (1 << 20));
    }

    #[test]
    fn what_goes_beyond_the_room_changes_nothing() {
        let begin = Counting::default().counted().total();
        let mut on = Counting::with_room(begin + 1000);
        on.keep("weights", Kind::U32, 100).unwrap();
        let before = on.counted();
        let error = on.keep("moments", Kind::U32, 151).unwrap_err();
        let said = format!("moments takes 604 bytes and 600 of {} are free", begin + 1000);
        assert!(Counting::is_out_of_memory(&error) && error.to_string() == said, "{error}");
        on.run(&program(&[("a", 768)], 1), &Inputs::default()).unwrap_err();
        assert_eq!(on.counted(), before);
        on.run(&program(&[("a", 512)], 1), &Inputs::default()).unwrap();
    }
}
