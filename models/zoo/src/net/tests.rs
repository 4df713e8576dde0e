//! Gradients against finite differences.

use std::sync::Arc;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;

fn shape() -> Shape {
    Shape {
        vocab: 11,
        hidden: 16,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 8,
        ffn: 24,
        qkv_bias: true,
        qk_norm: false,
        mixer: Mixer::Softmax,
    }
}

fn local_linear() -> Shape {
    Shape { qk_norm: true, mixer: Mixer::Lla { ridge_floor: 0.1 }, ..shape() }
}

/// Two groups: a text with a window that sees a part of it and itself, and a sequence in full.
fn rows() -> Rows {
    let mut rows = Rows::default();
    let text = rows.push_causal(&[1, 5, 3, 7, 2]);
    let window = rows.len();
    for (at, token) in [9, 4].into_iter().enumerate() {
        rows.push(token, 3 + at, [text..text + 3, window..window + at + 1]);
    }
    rows.close(text);
    let full = rows.push_full(&[10, 6, 8]);
    rows.close(full);
    rows
}

/// A network whose norms and biases are not all the same.
fn net(shape: Shape) -> Net {
    let net = Net::new(shape, 3).unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    for var in net.parameters().values() {
        let noise: Vec<f32> = (0..var.elem_count()).map(|_| rng.random_range(-0.3..0.3)).collect();
        let noise = Tensor::from_vec(noise, var.shape(), &Device::Cpu).unwrap();
        var.set(&(var.as_tensor() + noise).unwrap()).unwrap();
    }
    net
}

fn loss(net: &Net, rows: &Arc<Rows>) -> Tensor {
    let hidden = net.hidden(rows).unwrap();
    let hard = net.logits(&hidden, &[0, 2, 5, 9]).unwrap();
    let hard = token_loss(&hard, vec![4, 1, 10, 3], vec![0.5, 1.0, 0.25, 2.0]).unwrap();
    let soft = net.logits(&hidden, &[6, 8]).unwrap();
    let mut wanted = vec![0f32; 22];
    (wanted[3], wanted[7], wanted[11 + 2]) = (0.25, 0.75, 1.0);
    let soft = soft_loss(&soft, wanted, vec![1.5, 0.5]).unwrap();
    (hard + soft).unwrap()
}

#[test]
fn gradients_are_those_of_finite_differences() {
    check_gradients(&net(shape()));
}

#[test]
fn gradients_of_linear_attention_are_those_of_finite_differences() {
    check_gradients(&net(Shape { mixer: Mixer::Linear, ..shape() }));
}

#[test]
fn gradients_of_local_linear_attention_are_those_of_finite_differences() {
    check_gradients(&net(local_linear()));
}

fn check_gradients(net: &Net) {
    let rows = Arc::new(rows());
    let grads = loss(net, &rows).backward().unwrap();
    for (name, var) in net.parameters() {
        let grad = ops::copied(grads.get(var).expect("every parameter has a gradient")).unwrap();
        let values = ops::copied(var).unwrap();
        // The direction of the gradient itself: the derivative along it is its norm.
        let norm = grad.iter().map(|g| g * g).sum::<f32>().sqrt();
        assert!(norm > 1e-4, "{name}: {norm}");
        let at = |step: f32| {
            let moved: Vec<f32> = values.iter().zip(&grad).map(|(value, g)| value + step * g / norm).collect();
            var.set(&Tensor::from_vec(moved, var.shape(), &Device::Cpu).unwrap()).unwrap();
            f64::from(loss(net, &rows).to_scalar::<f32>().unwrap())
        };
        let step = 4e-3;
        let measured = (at(step) - at(-step)) / (2.0 * f64::from(step));
        at(0.0);
        let error = (measured - f64::from(norm)).abs() / f64::from(norm);
        assert!(error < 0.01, "{name}: {measured} measured, {norm} computed");
    }
}

#[test]
fn a_row_sees_what_it_is_told_to_and_nothing_else() {
    for shape in [shape(), local_linear(), Shape { mixer: Mixer::Linear, ..shape() }] {
        check_visibility(&net(shape));
    }
}

fn check_visibility(net: &Net) {
    let hidden = |rows: Rows| net.hidden(&Arc::new(rows)).unwrap().to_vec2::<f32>().unwrap();
    let before = hidden(rows());
    let mut changed = rows();
    // The fourth token of the text: seen by itself and the fifth, not by the window nor by the other group.
    changed.tokens[3] = 0;
    let after = hidden(changed);
    for row in 0..before.len() {
        assert_eq!(before[row] != after[row], row == 3 || row == 4, "row {row}");
    }
}

#[test]
fn the_exponential_is_close_over_its_whole_range() {
    for i in 0..20_000 {
        let x = -(i as f32) * 0.004;
        let (close, exact) = (f64::from(ops::exp_negative(x)), f64::from(x).exp());
        assert!((close - exact).abs() <= exact * (3e-7 - 1e-7 * f64::from(x)) + 1e-35, "{x}: {close} for {exact}");
    }
    assert_eq!(ops::exp_negative(0.0), 1.0);
    assert!(ops::exp_negative(f32::MIN) < 1e-37);
}

#[test]
fn weights_of_other_sizes_are_refused_by_name() {
    let mut weights: std::collections::BTreeMap<_, _> =
        net(shape()).parameters().iter().map(|(name, var)| (name.clone(), var.as_tensor().clone())).collect();
    weights.retain(|name, _| !name.ends_with("bias"));
    let same = Net::from_weights(shape(), &weights).unwrap();
    assert!(
        same.parameters()["model.layers.1.self_attn.q_proj.bias"].to_vec1::<f32>().unwrap().iter().all(|b| *b == 0.0)
    );
    let wide = Shape { ffn: 32, ..shape() };
    assert!(Net::from_weights(wide, &weights).unwrap_err().to_string().contains("mlp.gate_proj"));
    weights.remove("model.norm.weight");
    assert!(Net::from_weights(shape(), &weights).unwrap_err().to_string().contains("model.norm.weight"));
}

/// Golden vector 03 of local linear attention: outputs and gradients in float64.
#[test]
fn local_linear_attention_has_the_gradients_of_the_golden_vector() {
    const D: usize = 16;
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../kernels/tests/golden/lla/03_n33_d16_grads.safetensors");
    let golden = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    let (heads, n, d) = golden["q"].dims3().unwrap();
    assert_eq!((heads, d), (2, D));
    // `[heads, n, d]` to `[n, heads * d]`, f32.
    let packed = |name: &str| {
        let tensor = golden[name].to_dtype(candle_core::DType::F32).unwrap().transpose(0, 1).unwrap();
        tensor.contiguous().unwrap().reshape((n, heads * d)).unwrap()
    };
    let qkv = Var::from_tensor(&Tensor::cat(&[packed("q"), packed("k"), packed("v")], 1).unwrap()).unwrap();
    let ridges = golden["lam"].to_dtype(candle_core::DType::F64).unwrap().to_vec2::<f64>().unwrap();
    let thetas: Vec<f64> = ridges.iter().map(|ridges| ridges[0].exp_m1().ln()).collect();
    let theta = Var::new(thetas.iter().map(|theta| *theta as f32).collect::<Vec<_>>(), &Device::Cpu).unwrap();
    let mut rows = Rows::default();
    for row in 0..n {
        // Position 0: the vector has no rotation.
        rows.push(0, 0, [0..row + 1, 0..0]);
    }
    rows.close(0);
    let attention = Attention {
        rows: Arc::new(rows),
        heads,
        kv_heads: heads,
        head_dim: d,
        theta: ROPE_THETA,
        weighting: Weighting::Linear,
    };
    let out = qkv.apply_op2(theta.as_tensor(), Lla::new(attention, 0.25, 0.0)).unwrap();
    let error = |got: &Tensor, wanted: &Tensor| {
        let (got, wanted) = (ops::copied(got).unwrap(), ops::copied(wanted).unwrap());
        assert_eq!(got.len(), wanted.len());
        let largest = wanted.iter().fold(0f32, |largest, x| largest.max(x.abs()));
        got.iter().zip(&wanted).fold(0f32, |worst, (got, wanted)| worst.max((got - wanted).abs())) / largest
    };
    assert!(error(&out, &packed("o")) < 1e-5);
    let grads = (out * packed("grad_o")).unwrap().sum_all().unwrap().backward().unwrap();
    let d_qkv = grads.get(&qkv).unwrap();
    for (index, name) in ["grad_q", "grad_k", "grad_v"].into_iter().enumerate() {
        let part = d_qkv.narrow(1, index * heads * d, heads * d).unwrap().contiguous().unwrap();
        let error = error(&part, &packed(name));
        assert!(error < 3e-5, "{name}: {error}");
    }
    // The vector has the gradient of each row's ridge; a head's rows share one here.
    let d_ridges = golden["grad_lam"].to_dtype(candle_core::DType::F64).unwrap().to_vec2::<f64>().unwrap();
    let d_theta = grads.get(&theta).unwrap().to_vec1::<f32>().unwrap();
    for (head, theta) in thetas.into_iter().enumerate() {
        let wanted = d_ridges[head].iter().sum::<f64>() / (1.0 + (-theta).exp());
        assert!((f64::from(d_theta[head]) - wanted).abs() < 1e-4 * wanted.abs(), "{wanted}: {}", d_theta[head]);
    }
}
