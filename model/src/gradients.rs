//! The gradient of every parameter, laid out as the weights are.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};

use crate::parameters::{ModelViews, ParameterIndex};

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
    pub fn new(index: &Arc<ParameterIndex>, blocks: usize, device: &Device) -> Result<Self> {
        let flat = Tensor::zeros(index.total(), DType::F32, device)?;
        let views = ModelViews::new(&flat, index, blocks)?;
        Ok(Self { flat, index: Arc::clone(index), views })
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
