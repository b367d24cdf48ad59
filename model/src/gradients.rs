//! The gradient of every parameter, laid out as the weights are; or, where each block's is used as soon
//! as it is there, of one block at a time.

use std::sync::Arc;

use candle_core::{Device, Result, Tensor};

use crate::config::Qwen3Config;
use crate::load::WeightsError;
use crate::ops::adamw::squared_norm;
use crate::parameters::{ModelViews, ParameterIndex};
use crate::weights::zeros;

/// One flat float32 tensor `[P]` to which every backward operation adds.
#[derive(Debug)]
pub struct Gradients {
    flat: Tensor,
    index: Arc<ParameterIndex>,
    views: ModelViews,
}

impl Gradients {
    /// Gradients of 0.
    ///
    /// # Errors
    /// When the device has no room for them.
    pub fn new(
        index: &Arc<ParameterIndex>,
        blocks: usize,
        device: &Device,
    ) -> std::result::Result<Self, WeightsError> {
        let flat = Tensor::from_vec(zeros::<f32>(index.total())?, index.total(), device)?;
        let views = ModelViews::new(&flat, index, blocks)?;
        Ok(Self { flat, index: Arc::clone(index), views })
    }

    /// Gradients of 0 with room for one block's, which all blocks share: laid out as those of the same
    /// model with a single block.
    ///
    /// # Errors
    /// When the device has no room for them.
    pub(crate) fn of_one_block(
        config: &Qwen3Config,
        device: &Device,
    ) -> std::result::Result<Self, WeightsError> {
        let mut single = config.clone();
        single.num_hidden_layers = 1;
        let mut gradients = Self::new(&Arc::new(ParameterIndex::new(&single)), 1, device)?;
        let block = gradients.views.blocks[0].clone();
        gradients.views.blocks = vec![block; config.num_hidden_layers];
        Ok(gradients)
    }

    /// What lies before the blocks, each block, what lies after them.
    pub(crate) fn parts(&self) -> Result<Vec<Tensor>> {
        let parts = self.index.parts();
        parts.into_iter().map(|part| self.flat.narrow(0, part.start, part.len())).collect()
    }

    /// The first parameter whose gradient is not finite.
    pub(crate) fn first_not_finite(&self) -> Result<Option<&str>> {
        for parameter in self.index.parameters() {
            let gradient = self.flat.narrow(0, parameter.offset, parameter.len())?;
            if !squared_norm(&gradient)?.is_finite() {
                return Ok(Some(&parameter.name));
            }
        }
        Ok(None)
    }

    /// Sets all of them to 0.
    ///
    /// # Errors
    /// When the device fails.
    pub fn zero(&self) -> Result<()> {
        self.flat.zero_set()
    }

    /// All gradients, `[P]`.
    pub fn flat(&self) -> &Tensor {
        &self.flat
    }

    /// The gradient of one parameter, a view in the parameter's shape.
    ///
    /// # Errors
    /// When no parameter has this name.
    pub fn get(&self, name: &str) -> Result<Tensor> {
        self.index.view(&self.flat, name)
    }

    /// Where each parameter lies.
    pub fn index(&self) -> &Arc<ParameterIndex> {
        &self.index
    }

    /// Where the head's gradient is added, `[V, D]`: the embedding's when tied.
    pub fn head(&self) -> &Tensor {
        &self.views.head
    }

    pub(crate) fn views(&self) -> &ModelViews {
        &self.views
    }
}
