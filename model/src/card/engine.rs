//! A model on a card, and what it is asked.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{DType, Device as Tensors, Tensor, TensorId};
use distill::batch::TokenBatch;
use half::bf16;
use kernels::Activations;
use kernels::executor::{Executor, Inputs, Outputs, Times};
use kernels::program::{Kind, Program, View};

use super::answering::Answering;
use super::failed;
use super::loss;
use super::network::{self, Making, Network, Views};
use super::signals::Teacher;
use super::weight::{Piece, Weight};
use crate::config::Qwen3Config;
use crate::language_model::{Answer, Asking, LanguageModel};
use crate::ops::Precision;
use crate::ops::head::{HeadLoss, LossSettings, Teaching, check_asked};
use crate::parameters::ParameterIndex;
use crate::qwen3::{ModelError, check_batch};
use crate::recompute::Recompute;
use crate::started::Started;
use crate::tensor_file::{self, dequantise};

/// What a teacher's output matrix is kept as.
pub(super) const TEACHERS_MATRIX: &str = "the teacher's output matrix";

/// A model on a card that answers.
pub struct CardModel<X: Executor> {
    config: Qwen3Config,
    index: Arc<ParameterIndex>,
    precision: Precision,
    device: String,
    engine: Mutex<Engine<X>>,
}

/// The card, and what lies on it.
pub(super) struct Engine<X: Executor> {
    pub(super) on: X,
    pub(super) network: Network,
    /// Teachers' output matrices that were sent, in the activations' type.
    matrices: Vec<(TensorId, View)>,
    /// Memory for the logits of a loss, in bytes.
    pub(super) logits_bytes: usize,
    pub(super) answering: Answering<X>,
}

/// The type of activations that is computed with.
///
/// # Errors
/// For IEEE half precision, which the kernels do not have.
pub(super) fn activations(precision: Precision) -> Result<Activations, ModelError> {
    match precision {
        Precision::F32 => Ok(Activations::F32),
        Precision::Bf16 => Ok(Activations::Bf16),
        Precision::F16 => Err(ModelError::Device(
            "a card computes in bf16 or f32, not in f16: choose --dtype bf16".to_owned(),
        )),
    }
}

impl<X: Executor> CardModel<X> {
    /// With weights `[P]` in the type of the products' operands, which are sent.
    ///
    /// # Errors
    /// When there is no room for them, or the precision is not one of a card.
    pub fn new(
        mut on: X,
        config: Qwen3Config,
        weights: &crate::weights::Weights,
        precision: Precision,
    ) -> Result<Self, ModelError> {
        let flat = keep_weights(&mut on, weights.index(), precision)?;
        send(&mut on, flat, weights.flat())?;
        let views = network::weights(flat, weights.index(), config.num_hidden_layers)?;
        Self::over(on, config, (weights.index(), views), precision)
    }

    /// With weights 0.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub(super) fn empty(
        mut on: X,
        config: Qwen3Config,
        precision: Precision,
    ) -> Result<Self, ModelError> {
        let index = Arc::new(ParameterIndex::new(&config));
        let flat = keep_weights(&mut on, &index, precision)?;
        let views = network::weights(flat, &index, config.num_hidden_layers)?;
        Self::over(on, config, (&index, views), precision)
    }

    /// Over weights that lie on the card.
    pub(super) fn over(
        mut on: X,
        config: Qwen3Config,
        (index, views): (&Arc<ParameterIndex>, Views),
        precision: Precision,
    ) -> Result<Self, ModelError> {
        let network = Network::new(&mut on, config.clone(), views, activations(precision)?)?;
        let device = on.name();
        let engine = Engine {
            on,
            network,
            matrices: Vec::new(),
            logits_bytes: loss::LOGITS_BYTES,
            answering: Answering::default(),
        };
        let (index, engine) = (Arc::clone(index), Mutex::new(engine));
        Ok(Self { config, index, precision, device, engine })
    }

    /// The card, for this thread alone.
    pub(super) fn engine(&self) -> MutexGuard<'_, Engine<X>> {
        self.engine.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<X: Executor + Send> LanguageModel for CardModel<X> {
    fn config(&self) -> &Qwen3Config {
        &self.config
    }

    fn precision(&self) -> Precision {
        self.precision
    }

    fn index(&self) -> &ParameterIndex {
        &self.index
    }

    fn device(&self) -> String {
        self.device.clone()
    }

    fn start_answer(
        &self,
        batch: &TokenBatch,
        asked: &[Asking<'_>],
    ) -> Result<Started<Vec<Answer>>, ModelError> {
        check_batch(&self.config, batch)?;
        self.engine().start_answer(batch, asked).map(Started::Running)
    }

    fn has_ended(&self, started: &Started<Vec<Answer>>) -> Result<bool, ModelError> {
        match started {
            Started::Done(_) => Ok(true),
            Started::Running(number) => self.engine().has_ended(*number),
        }
    }

    fn finish_answer(
        &self,
        started: Started<Vec<Answer>>,
        asked: &[Asking<'_>],
    ) -> Result<Vec<Answer>, ModelError> {
        match started {
            Started::Done(answers) => Ok(answers),
            Started::Running(number) => self.engine().finish_answer(number, asked),
        }
    }

    fn losses(
        &self,
        batch: &TokenBatch,
        classes: usize,
        signal: Option<Teaching<'_>>,
        settings: &LossSettings,
    ) -> Result<HeadLoss, ModelError> {
        check_batch(&self.config, batch)?;
        let mut making = Making::default();
        let mut engine = self.engine();
        let asked = LossOf { classes, signal, settings, scale: 1.0 };
        let (_, losses) = engine.losses(&mut making, batch, asked, None)?;
        Ok(losses.read(&engine.run(&making.program, &making.inputs)?))
    }

    fn note_times(&self) {
        self.engine().on.note_times();
    }

    fn take_times(&self) -> Option<Times> {
        self.engine().on.take_times()
    }

    fn head(&self) -> Result<Tensor, ModelError> {
        let (d, mut engine) = (self.config.hidden_size, self.engine());
        let head = engine.network.views.head.clone();
        let (kind, rows) = (Kind::from(engine.network.activations), head.len() / d);
        let pieces = match head {
            Weight::View(view) => vec![Piece { view, quantised: None, len: view.len }],
            Weight::Pieces(pieces) => pieces,
        };
        Ok(match kind {
            Kind::Bf16 => {
                Tensor::from_vec(engine.numbers::<bf16>(&pieces)?, (rows, d), &Tensors::Cpu)?
            }
            Kind::F32 | Kind::F64 | Kind::U32 | Kind::Bytes => {
                Tensor::from_vec(engine.numbers::<f32>(&pieces)?, (rows, d), &Tensors::Cpu)?
            }
        })
    }
}

/// Memory for the weights `[P]` in the type of the products' operands.
fn keep_weights<X: Executor>(
    on: &mut X,
    index: &ParameterIndex,
    precision: Precision,
) -> Result<View, ModelError> {
    let kind = Kind::from(activations(precision)?);
    on.keep("weights", kind, index.total()).map_err(failed::<X>)
}

/// What losses are asked for.
#[derive(Clone, Copy)]
pub(super) struct LossOf<'a> {
    pub(super) classes: usize,
    pub(super) signal: Option<Teaching<'a>>,
    pub(super) settings: &'a LossSettings,
    /// 1/N, N the scored positions of the whole step.
    pub(super) scale: f64,
}

/// What a backward pass begins with.
pub(super) struct Passed {
    pub(super) shape: super::network::Shape,
    pub(super) tape: super::network::Tape,
    pub(super) hidden: super::network::Hidden,
}

impl<X: Executor> Engine<X> {
    /// Adds a forward pass and the losses of a batch's scored positions, with their gradient where there is something
    /// to add that of the output matrix to.
    pub(super) fn losses(
        &mut self,
        making: &mut Making,
        batch: &TokenBatch,
        of: LossOf<'_>,
        gradient: Option<(View, Recompute)>,
    ) -> Result<(Passed, loss::Losses), ModelError> {
        let LossOf { classes, signal, settings, scale } = of;
        let (positions, targets) = (batch.scored(), batch.targets());
        let head = self.network.views.head.len() / self.network.config.hidden_size;
        check_asked(head, classes, targets, signal, settings, gradient.is_some())?;
        let teacher = signal.map(|said| self.teacher(making, said)).transpose()?;
        let recompute = gradient.map_or(Recompute::None, |(_, recompute)| recompute);
        let shape = self.network.shape(making, batch);
        let tape = self.network.forward(making, batch, &shape, recompute);
        let hidden = self.network.hidden(making, &tape, positions, &shape);
        let bytes = self.logits_bytes;
        let asked = loss::Asked { classes, targets, teacher, settings, scale, bytes };
        let gradient = gradient.map(|(dw, _)| dw);
        let losses = loss::losses(making, &self.network, hidden.hidden, &asked, gradient);
        Ok((Passed { shape, tape, hidden }, losses))
    }

    /// What a teacher says, where the card can read it.
    fn teacher<'a>(
        &mut self,
        making: &mut Making,
        said: Teaching<'a>,
    ) -> Result<Teacher<'a>, ModelError> {
        match said {
            Teaching::TopK(signal) => Ok(Teacher::TopK(signal)),
            Teaching::Draws(signal) => Ok(Teacher::Draws(signal)),
            Teaching::Full { hidden, w } => {
                let width = w.dim(1)?;
                let w = self.matrix(w)?;
                let hidden = match self.network.activations {
                    Activations::F32 => making.send(&values::<f32>(hidden, DType::F32)?),
                    Activations::Bf16 => making.send(&values::<bf16>(hidden, DType::BF16)?),
                };
                Ok(Teacher::Full { hidden, w, width })
            }
        }
    }

    /// A teacher's output matrix, which is sent once.
    fn matrix(&mut self, w: &Tensor) -> Result<View, ModelError> {
        if let Some((_, view)) = self.matrices.iter().find(|(id, _)| *id == w.id()) {
            return Ok(*view);
        }
        let view = self.keep_matrix(w)?;
        send(&mut self.on, view, w)?;
        self.matrices.push((w.id(), view));
        Ok(view)
    }

    fn keep_matrix(&mut self, w: &Tensor) -> Result<View, ModelError> {
        let (kind, len) = (self.network.activations.into(), w.elem_count());
        self.on.keep(TEACHERS_MATRIX, kind, len).map_err(failed::<X>)
    }

    /// Room for a teacher's output matrix, which then counts as sent.
    pub(super) fn place_matrix(&mut self, w: &Tensor) -> Result<(), ModelError> {
        let view = self.keep_matrix(w)?;
        self.matrices.push((w.id(), view));
        Ok(())
    }

    pub(super) fn run(
        &mut self,
        program: &Program,
        inputs: &Inputs,
    ) -> Result<Outputs, ModelError> {
        self.on.run(program, inputs).map_err(failed::<X>)
    }

    /// The numbers of a matrix in the activations' type.
    fn numbers<T: kernels::executor::Element + tensor_file::Element>(
        &mut self,
        pieces: &[Piece],
    ) -> Result<Vec<T>, ModelError> {
        let mut all = Vec::new();
        for Piece { view, quantised, len } in pieces {
            let Some(of) = quantised else {
                all.extend(self.read::<T>(*view)?);
                continue;
            };
            let mut numbers = vec![<T as bytemuck::Zeroable>::zeroed(); *len];
            let blocks = bytemuck::pod_collect_to_vec(&self.read::<u8>(*view)?);
            T::narrow(&dequantise(*of, &blocks), &mut numbers);
            all.append(&mut numbers);
        }
        Ok(all)
    }

    pub(super) fn read<T: kernels::executor::Element>(
        &mut self,
        view: View,
    ) -> Result<Vec<T>, ModelError> {
        self.on.read(view).map_err(failed::<X>)
    }
}

fn values<T: candle_core::WithDType>(tensor: &Tensor, dtype: DType) -> Result<Vec<T>, ModelError> {
    Ok(tensor.to_dtype(dtype)?.flatten_all()?.to_vec1()?)
}

/// A tensor's numbers to kept memory, in the type that this has.
pub(super) fn send<X: Executor>(on: &mut X, view: View, tensor: &Tensor) -> Result<(), ModelError> {
    match view.kind {
        Kind::Bf16 => on.write(view, &values::<bf16>(tensor, DType::BF16)?),
        Kind::F32 | Kind::F64 | Kind::U32 | Kind::Bytes => {
            on.write(view, &values::<f32>(tensor, DType::F32)?)
        }
    }
    .map_err(failed::<X>)
}
