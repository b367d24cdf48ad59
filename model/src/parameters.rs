//! Where each parameter lies: all of them end to end in one flat tensor.
//!
//! Weights, gradients and both moments of the optimiser share the layout, so an optimiser step is
//! one pass over flat tensors. What the network multiplies together lies together: q, k and v are
//! one matrix to it, their biases one vector, gate and up one matrix.

use std::collections::HashMap;
use std::ops::Range;

use candle_core::{DType, Result, Tensor, bail};

use crate::config::Qwen3Config;

/// One parameter under its Hugging Face name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Name in the file.
    pub name: String,
    /// First element in the flat tensor.
    pub offset: usize,
    /// Shape in the file: `[rows, columns]` or `[length]`.
    pub shape: Vec<usize>,
}

impl Parameter {
    /// Number of elements.
    #[expect(clippy::len_without_is_empty, reason = "a parameter is never empty")]
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// What a random model starts it at.
    pub fn kind(&self) -> ParameterKind {
        match self.name.rsplit('.').next() {
            Some("bias") => ParameterKind::Bias,
            _ if self.shape.len() == 1 => ParameterKind::Norm,
            _ => ParameterKind::Matrix,
        }
    }
}

/// The three kinds of parameters, told apart by their start values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParameterKind {
    /// A projection, the embedding or the head: normal.
    Matrix,
    /// The weight of a norm: 1.
    Norm,
    /// A bias: 0.
    Bias,
}

/// The parameters of one configuration, in the order of the flat tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParameterIndex {
    parameters: Vec<Parameter>,
    by_name: HashMap<String, usize>,
    /// Where each block begins, and where the last one ends.
    block_edges: Vec<usize>,
    total: usize,
}

impl ParameterIndex {
    /// The layout of a configuration: embedding, blocks, last norm, head (when not tied).
    pub fn new(config: &Qwen3Config) -> Self {
        let mut index = Self {
            parameters: Vec::new(),
            by_name: HashMap::new(),
            block_edges: Vec::new(),
            total: 0,
        };
        let (d, v) = (config.hidden_size, config.vocab_size);
        index.push("model.embed_tokens.weight".to_owned(), &[v, d]);
        for layer in 0..config.num_hidden_layers {
            index.block_edges.push(index.total);
            index.push_block(config, layer);
        }
        index.block_edges.push(index.total);
        index.push("model.norm.weight".to_owned(), &[d]);
        if !config.tie_word_embeddings {
            index.push("lm_head.weight".to_owned(), &[v, d]);
        }
        index
    }

    /// All parameters, in the order of the flat tensor.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// The parameter of a name.
    pub fn get(&self, name: &str) -> Option<&Parameter> {
        self.by_name.get(name).map(|&at| &self.parameters[at])
    }

    /// Number of elements of all parameters together, P.
    pub fn total(&self) -> usize {
        self.total
    }

    /// The flat tensor in parts: what lies before the blocks, each block, what lies after them.
    pub(crate) fn parts(&self) -> Vec<Range<usize>> {
        let edges: Vec<usize> = [&[0], self.block_edges.as_slice(), &[self.total]].concat();
        edges.windows(2).map(|edge| edge[0]..edge[1]).collect()
    }

    /// BLAKE3 of names and shapes in order: two states fit each other when it is equal.
    pub fn digest(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for parameter in &self.parameters {
            hasher.update(format!("{} {:?}\n", parameter.name, parameter.shape).as_bytes());
        }
        hasher.finalize().to_hex().to_string()
    }

    /// The view of one parameter in a flat tensor of this layout.
    ///
    /// # Errors
    /// When no parameter has this name.
    pub fn view(&self, flat: &Tensor, name: &str) -> Result<Tensor> {
        match self.get(name) {
            Some(found) => flat.narrow(0, found.offset, found.len())?.reshape(found.shape.clone()),
            None => bail!("this model has no parameter `{name}`"),
        }
    }

    /// Neighbouring parameters joined along their first dimension.
    fn joined(&self, names: &[String]) -> Result<Part> {
        let mut parts = names.iter().map(|name| match self.get(name) {
            Some(found) => Ok(found),
            None => bail!("this model has no parameter `{name}`"),
        });
        let Some(first) = parts.next().transpose()? else { bail!("nothing to join") };
        let mut part = Part { offset: first.offset, shape: first.shape.clone() };
        for found in parts {
            let found = found?;
            if found.offset != part.offset + part.len() {
                bail!("`{}` does not follow its neighbour in the flat tensor", found.name);
            }
            part.shape[0] += found.shape[0];
        }
        Ok(part)
    }

    fn push(&mut self, name: String, shape: &[usize]) {
        let parameter = Parameter { name, offset: self.total, shape: shape.to_vec() };
        self.total += parameter.len();
        self.by_name.insert(parameter.name.clone(), self.parameters.len());
        self.parameters.push(parameter);
    }

    fn push_block(&mut self, config: &Qwen3Config, layer: usize) {
        let (d, e, i) = (config.hidden_size, config.head_dim, config.intermediate_size);
        let (h, g) = (config.num_attention_heads * e, config.num_key_value_heads * e);
        let name = |part: &str| format!("model.layers.{layer}.{part}");
        self.push(name("input_layernorm.weight"), &[d]);
        let projections = [("q_proj", h), ("k_proj", g), ("v_proj", g)];
        for (part, rows) in projections {
            self.push(name(&format!("self_attn.{part}.weight")), &[rows, d]);
        }
        if config.attention_bias {
            for (part, rows) in projections {
                self.push(name(&format!("self_attn.{part}.bias")), &[rows]);
            }
        }
        self.push(name("self_attn.q_norm.weight"), &[e]);
        self.push(name("self_attn.k_norm.weight"), &[e]);
        self.push(name("self_attn.o_proj.weight"), &[d, h]);
        if config.attention_bias {
            self.push(name("self_attn.o_proj.bias"), &[d]);
        }
        self.push(name("post_attention_layernorm.weight"), &[d]);
        self.push(name("mlp.gate_proj.weight"), &[i, d]);
        self.push(name("mlp.up_proj.weight"), &[i, d]);
        self.push(name("mlp.down_proj.weight"), &[d, i]);
    }
}

/// One parameter, or neighbours that the network uses as one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// First element in the flat tensor.
    pub(crate) offset: usize,
    /// `[rows, columns]` or `[length]`.
    pub(crate) shape: Vec<usize>,
}

impl Part {
    /// Number of elements.
    pub(crate) fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Where its elements lie in the flat tensor.
    pub(crate) fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.len()
    }
}

/// The parameters of one block as the network uses them: vectors and matrices, as a rule views of something flat.
#[derive(Clone, Debug)]
pub(crate) struct BlockViews<T = Tensor, M = T> {
    pub(crate) input_norm: T,
    /// `[(H + 2 G) E, D]`
    pub(crate) qkv: M,
    pub(crate) qkv_bias: Option<T>,
    pub(crate) q_norm: T,
    pub(crate) k_norm: T,
    pub(crate) o: M,
    pub(crate) o_bias: Option<T>,
    pub(crate) mlp_norm: T,
    /// `[2 I, D]`
    pub(crate) gate_up: M,
    pub(crate) down: M,
}

/// All parameters as the network uses them.
#[derive(Clone, Debug)]
pub(crate) struct ModelViews<T = Tensor, M = T> {
    pub(crate) embedding: M,
    pub(crate) blocks: Vec<BlockViews<T, M>>,
    pub(crate) norm: T,
    /// The embedding again when tied.
    pub(crate) head: M,
}

impl ModelViews {
    /// The views of a flat tensor. Vectors of a 16-bit tensor are widened copies: they are small,
    /// and norms and biases are computed in float32.
    pub(crate) fn new(flat: &Tensor, index: &ParameterIndex, blocks: usize) -> Result<Self> {
        let view = |part: &Part| flat.narrow(0, part.offset, part.len())?.reshape(&*part.shape);
        Self::with(index, blocks, |part| view(&part)?.to_dtype(DType::F32), |part| view(&part))
    }
}

impl<T, M: Clone> ModelViews<T, M> {
    /// What `vector` and `matrix` make of each.
    pub(crate) fn with(
        index: &ParameterIndex,
        blocks: usize,
        vector: impl Fn(Part) -> Result<T>,
        matrix: impl Fn(Part) -> Result<M>,
    ) -> Result<Self> {
        let of = |name: &str| index.joined(&[name.to_owned()]);
        let embedding = matrix(of("model.embed_tokens.weight")?)?;
        let head = match index.get("lm_head.weight") {
            Some(_) => matrix(of("lm_head.weight")?)?,
            None => embedding.clone(),
        };
        let block = |at| BlockViews::with(index, at, &vector, &matrix);
        let blocks = (0..blocks).map(block).collect::<Result<_>>()?;
        Ok(Self { embedding, blocks, norm: vector(of("model.norm.weight")?)?, head })
    }
}

impl<T, M> BlockViews<T, M> {
    fn with(
        index: &ParameterIndex,
        layer: usize,
        vector: &impl Fn(Part) -> Result<T>,
        matrix: &impl Fn(Part) -> Result<M>,
    ) -> Result<Self> {
        let name = |part: &str| format!("model.layers.{layer}.{part}");
        let joined = |parts: &[&str]| {
            let names: Vec<String> = parts.iter().map(|part| name(part)).collect();
            index.joined(&names)
        };
        let of = |part: &str| vector(joined(&[part])?);
        let biased = index.get(&name("self_attn.q_proj.bias")).is_some();
        let if_biased = |parts: &[&str]| biased.then(|| vector(joined(parts)?)).transpose();
        Ok(Self {
            input_norm: of("input_layernorm.weight")?,
            qkv: matrix(joined(&[
                "self_attn.q_proj.weight",
                "self_attn.k_proj.weight",
                "self_attn.v_proj.weight",
            ])?)?,
            qkv_bias: if_biased(&[
                "self_attn.q_proj.bias",
                "self_attn.k_proj.bias",
                "self_attn.v_proj.bias",
            ])?,
            q_norm: of("self_attn.q_norm.weight")?,
            k_norm: of("self_attn.k_norm.weight")?,
            o: matrix(joined(&["self_attn.o_proj.weight"])?)?,
            o_bias: if_biased(&["self_attn.o_proj.bias"])?,
            mlp_norm: of("post_attention_layernorm.weight")?,
            gate_up: matrix(joined(&["mlp.gate_proj.weight", "mlp.up_proj.weight"])?)?,
            down: matrix(joined(&["mlp.down_proj.weight"])?)?,
        })
    }
}

#[cfg(test)]
#[path = "parameters_tests.rs"]
mod tests;
