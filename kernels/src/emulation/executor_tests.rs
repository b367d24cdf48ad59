//! Tests of whole programs on the host.

use half::bf16;

use super::*;
use crate::emulation::AVAILABLE;
use crate::{Activations, swiglu};

fn rounded(values: &[f32]) -> Vec<bf16> {
    values.iter().map(|&x| bf16::from_f32(x)).collect()
}

#[test]
fn products_of_transposes_parts_and_sums() {
    let mut on = Emulation::new(1);
    let a = on.keep("a", Kind::Bf16, 6).unwrap();
    let b = on.keep("b", Kind::Bf16, 8).unwrap();
    on.write(a, &rounded(&[1., 2., 3., 4., 5., 6.])).unwrap();
    on.write(b, &rounded(&[1., 0., 2., 9., 0., 1., 3., 9.])).unwrap();
    let mut program = Program::default();
    let plus = program.input(Kind::F32, 4);
    let [c, d] = [program.output(Kind::F32, 4), program.output(Kind::Bf16, 8)];
    // [[1, 2, 3], [4, 5, 6]] · [[1, 0], [0, 1], [2, 3]], the second one as the transpose of rows of 3 among 4.
    let b = Matrix::strided(b, [2, 3], 4).transpose();
    let of = Product {
        a: Matrix::of(a, [2, 3]),
        b,
        into: Matrix::of(c, [2, 2]),
        plus: Some(plus),
        scale: 2.0,
    };
    program.product(of);
    // aᵀ · bᵀ's columns [1, 0], [0, 1], into rows of 2 among 3.
    let b = Matrix::strided(b.view, [2, 2], 4);
    let into = Matrix::strided(d, [3, 2], 3);
    program.product(Product {
        a: Matrix::of(a, [2, 3]).transpose(),
        b,
        into,
        plus: None,
        scale: 1.0,
    });
    let mut inputs = Inputs::default();
    inputs.set(plus, &[100.0_f32, 200.0, 300.0, 400.0]);
    let outputs = on.run(&program, &inputs).unwrap();
    assert_eq!(outputs.get::<f32>(c), [114.0, 222.0, 332.0, 446.0]);
    let d: Vec<f32> = outputs.get::<bf16>(d).into_iter().map(bf16::to_f32).collect();
    assert_eq!([d[0], d[1], d[3], d[4], d[6], d[7]], [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
    assert!(d[2].is_nan() && d[5].is_nan());
}

#[test]
fn what_no_library_multiplies_is_refused() {
    let mut on = Emulation::new(1);
    let mut program = Program::default();
    let [x, y] = [program.input(Kind::F32, 4), program.output(Kind::Bf16, 4)];
    let [a, into] = [x, y].map(|view| Matrix::of(view, [2, 2]));
    program.product(Product { a, b: a, into, plus: None, scale: 1.0 });
    let mut inputs = Inputs::default();
    inputs.set(x, &[1.0_f32; 4]);
    let found = on.run(&program, &inputs).unwrap_err().to_string();
    assert!(found.contains("a product of float32 into bfloat16"), "{found}");
}

#[test]
fn a_buffer_holds_nothing_when_its_life_begins() {
    let mut on = Emulation::new(1);
    let mut program = Program::default();
    let [c, d] = [program.output(Kind::F32, 2), program.output(Kind::F32, 2)];
    let first = program.passing("first", Kind::F32, 2);
    program.zero(first);
    program.copy(first, c);
    // In the place of the first one.
    let second = program.passing("second", Kind::F32, 2);
    program.copy(second, d);
    assert_eq!(Places::of(&program).starts, [0, 0]);
    let outputs = on.run(&program, &Inputs::default()).unwrap();
    assert_eq!(outputs.get::<f32>(c), [0.0, 0.0]);
    assert!(outputs.get::<f32>(d).iter().all(|x| x.is_nan()));
}

#[test]
fn what_is_found_names_the_step() {
    if !AVAILABLE {
        test_support::skip("what_is_found_names_the_step", "c++", "no compiler of C++20 was found");
        return;
    }
    let mut on = Emulation::new(1);
    let mut program = Program::default();
    let x = program.passing("x", Kind::F32, 20);
    program.zero(x);
    program.part("gate");
    // Rows of [gate, up] of 2 · 8 need 32.
    let [short, y] = [x.part(0..12), program.output(Kind::F32, 8)];
    program.call(swiglu::swiglu([short, y], [1, 8], Activations::F32));
    let found = on.run(&program, &Inputs::default()).unwrap_err().to_string();
    assert!(
        found.starts_with("step 1 (gate): swiglu_f32: ") && found.contains("beyond"),
        "{found}"
    );
    program.steps.pop();
    program.call(swiglu::swiglu([x.part(0..16), x.part(12..20)], [1, 8], Activations::F32));
    let found = on.run(&program, &Inputs::default()).unwrap_err().to_string();
    assert!(found.contains("overlap"), "{found}");
}
