//! A teacher from a GGUF file on a card: matrices lie there as the file has them, everything else in the activations'
//! type, all in one buffer.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use half::bf16;
use kernels::executor::{Element, Executor};
use kernels::program::{Kind, View};
use kernels::quantised::Quantised;

use super::engine::{CardModel, activations};
use super::failed;
use super::network::Views;
use super::weight::{Piece, Weight};
use crate::config::Qwen3Config;
use crate::load::{StoredWeights, WeightsError};
use crate::ops::Precision;
use crate::parameters::{ModelViews, ParameterIndex, Part};
use crate::qwen3::ModelError;
use crate::tensor_file::{self, StoredDtype, StoredTensor, TensorFile};

/// Where matrices begin: a multiple of it, in bytes.
const ALIGNMENT: usize = 256;

/// A parameter in the buffer.
#[derive(Clone, Copy)]
struct Placed {
    /// First byte.
    start: usize,
    quantised: Option<Quantised>,
    len: usize,
}

/// Where parameters go, by where they would lie in a flat tensor.
struct Layout {
    kind: Kind,
    places: BTreeMap<usize, Placed>,
    bytes: usize,
}

impl Layout {
    /// What is not quantised follows its neighbour without a gap, so that several are one view.
    fn of(stored: &StoredWeights, index: &ParameterIndex, kind: Kind) -> Self {
        let (mut places, mut end, mut follows) = (BTreeMap::new(), 0_usize, false);
        for (at, parameter) in index.parameters().iter().enumerate() {
            let len = parameter.len();
            let quantised = match stored.get(at).1.dtype {
                StoredDtype::Quantised(of) => Some(of),
                StoredDtype::F32 | StoredDtype::Bf16 | StoredDtype::F16 => None,
            };
            let start = match quantised {
                None if follows => end,
                None | Some(_) => end.next_multiple_of(ALIGNMENT),
            };
            end = start + quantised.map_or(len * kind.bytes(), |of| of.bytes_of(len));
            follows = quantised.is_none();
            places.insert(parameter.offset, Placed { start, quantised, len });
        }
        Self { kind, places, bytes: end }
    }

    /// A part's parameters.
    fn pieces(&self, all: View, part: &Part) -> Vec<Piece> {
        let piece = |&Placed { start, quantised, len }: &Placed| {
            let view = match quantised {
                Some(of) => all.part(start..start + of.bytes_of(len)),
                None => all.part(start..start + len * self.kind.bytes()).taken_for(self.kind),
            };
            Piece { view, quantised, len }
        };
        self.places.range(part.range()).map(|(_, placed)| piece(placed)).collect()
    }

    /// Parameters that are not quantised, as one.
    fn view(&self, pieces: &[Piece], part: &Part) -> Option<View> {
        let plain = pieces.iter().all(|piece| piece.quantised.is_none());
        let first = pieces.first().filter(|_| plain)?;
        Some(View { len: part.len(), ..first.view })
    }

    fn views(
        &self,
        all: View,
        index: &ParameterIndex,
        blocks: usize,
    ) -> candle_core::Result<Views> {
        let vector = |part: Part| match self.view(&self.pieces(all, &part), &part) {
            Some(view) => Ok(view),
            None => candle_core::bail!("norms and biases are not read where they are quantised"),
        };
        let matrix = |part: Part| {
            let pieces = self.pieces(all, &part);
            Ok(self.view(&pieces, &part).map_or(Weight::Pieces(pieces), Weight::View))
        };
        ModelViews::with(index, blocks, vector, matrix)
    }
}

impl<X: Executor> CardModel<X> {
    /// The model of a GGUF file, which this configuration describes.
    ///
    /// # Errors
    /// What is wrong with the file, when there is no room for it, or the precision is not one of a card.
    pub fn quantised(
        mut on: X,
        file: &Path,
        config: Qwen3Config,
        precision: Precision,
    ) -> Result<Self, WeightsError> {
        let from = LaidOut::open(file, &config, precision)?;
        let all = from.keep(&mut on)?;
        from.send(&mut on, all)?;
        from.model(on, all, config)
    }

    /// The same as far as memory goes: the file's numbers are not read.
    ///
    /// # Errors
    /// As [`Self::quantised`].
    pub(super) fn empty_quantised(
        mut on: X,
        file: &Path,
        config: Qwen3Config,
        precision: Precision,
    ) -> Result<Self, WeightsError> {
        let from = LaidOut::open(file, &config, precision)?;
        let all = from.keep(&mut on)?;
        from.model(on, all, config)
    }
}

/// A file's parameters, and where each of them goes.
struct LaidOut {
    index: ParameterIndex,
    stored: StoredWeights,
    layout: Layout,
    precision: Precision,
}

impl LaidOut {
    fn open(file: &Path, config: &Qwen3Config, precision: Precision) -> Result<Self, WeightsError> {
        let index = ParameterIndex::new(config);
        let stored = StoredWeights::open(file, config, &index)?;
        let kind = Kind::from(activations(precision).map_err(said)?);
        let layout = Layout::of(&stored, &index, kind);
        Ok(Self { index, stored, layout, precision })
    }

    /// The buffer for them.
    fn keep<X: Executor>(&self, on: &mut X) -> Result<View, WeightsError> {
        let all = on.keep("weights", Kind::Bytes, self.layout.bytes);
        all.map_err(|error| said(failed::<X>(error)))
    }

    /// Their numbers, into it.
    fn send<X: Executor>(&self, on: &mut X, all: View) -> Result<(), WeightsError> {
        for (at, Placed { start, quantised, len }) in self.layout.places.values().enumerate() {
            let (file, tensor) = self.stored.get(at);
            let bytes = match (quantised, self.layout.kind) {
                (Some(of), _) => blocks(file, tensor, of.bytes_of(*len))?,
                (None, Kind::Bf16) => numbers::<bf16>(file, tensor, *len)?,
                (None, _) => numbers::<f32>(file, tensor, *len)?,
            };
            let to = all.part(*start..*start + bytes.len());
            on.write(to, &bytes).map_err(|error| said(failed::<X>(error)))?;
        }
        Ok(())
    }

    /// The model over it.
    fn model<X: Executor>(
        self,
        on: X,
        all: View,
        config: Qwen3Config,
    ) -> Result<CardModel<X>, WeightsError> {
        let views = self.layout.views(all, &self.index, config.num_hidden_layers)?;
        let over = (&Arc::new(self.index), views);
        CardModel::over(on, config, over, self.precision).map_err(said)
    }
}

fn said(error: ModelError) -> WeightsError {
    WeightsError::Card(error.to_string())
}

fn blocks(file: &TensorFile, tensor: &StoredTensor, bytes: usize) -> Result<Vec<u8>, WeightsError> {
    let mut all = vec![0; bytes];
    file.read_bytes(tensor, 0, &mut all)?;
    Ok(all)
}

fn numbers<T: Element + tensor_file::Element>(
    file: &TensorFile,
    tensor: &StoredTensor,
    len: usize,
) -> Result<Vec<u8>, WeightsError> {
    let mut all = vec![<T as bytemuck::Zeroable>::zeroed(); len];
    file.read(tensor, 0, &mut all)?;
    Ok(bytemuck::cast_slice(&all).to_vec())
}
