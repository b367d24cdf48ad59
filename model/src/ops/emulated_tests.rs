//! The kernels of NVIDIA cards against the references in `f64`, emulated on the host: in float32 and with
//! activations in bfloat16, at small and odd shapes.

mod adamw;
mod attention;
mod bias;
mod draws;
mod elements;
mod embed;
mod head;
mod heads;
mod norm;
mod quantised;
mod round;
mod swiglu;
mod topk;
