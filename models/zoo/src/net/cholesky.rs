//! Many small symmetric systems, factored eight side by side.

/// Systems that are factored together.
const LANES: usize = 8;

/// The same element of [`LANES`] systems.
type Lanes = [f32; LANES];

/// Elements of a triangle of size `d`, the diagonal included.
pub(super) fn triangle(d: usize) -> usize {
    d * (d + 1) / 2
}

/// Where row `i` of a triangle begins.
fn row(i: usize) -> usize {
    triangle(i)
}

/// Symmetric positive matrices, then their Cholesky factors, with the reciprocals of the diagonal in its place.
#[derive(Debug)]
pub(super) struct Factors {
    dim: usize,
    count: usize,
    /// Triangles, row by row, [`LANES`] matrices at a time.
    values: Vec<Lanes>,
}

impl Factors {
    pub(super) fn new(dim: usize) -> Self {
        Self { dim, count: 0, values: Vec::new() }
    }

    /// Adds the matrix `moments - mean mean^T + ridge I`; `moments` is a triangle, row by row.
    pub(super) fn push(&mut self, moments: &[f32], mean: &[f32], ridge: f32) {
        let lane = self.count % LANES;
        let size = triangle(self.dim);
        if lane == 0 {
            // Those that no matrix fills stay identities.
            let first = self.values.len();
            self.values.resize(first + size, [0.0; LANES]);
            for i in 0..self.dim {
                self.values[first + row(i) + i] = [1.0; LANES];
            }
        }
        let first = self.count / LANES * size;
        let into = &mut self.values[first..];
        for i in 0..self.dim {
            for j in 0..=i {
                into[row(i) + j][lane] = moments[row(i) + j] - mean[i] * mean[j];
            }
            into[row(i) + i][lane] += ridge;
        }
        self.count += 1;
    }

    /// Factors all matrices.
    pub(super) fn factor(&mut self) {
        let d = self.dim;
        let mut column = vec![[0f32; LANES]; d];
        for values in self.values.chunks_exact_mut(triangle(d)) {
            for k in 0..d {
                let inverse = values[row(k) + k].map(|pivot| 1.0 / pivot.sqrt());
                values[row(k) + k] = inverse;
                for i in k + 1..d {
                    let value = &mut values[row(i) + k];
                    (0..LANES).for_each(|lane| value[lane] *= inverse[lane]);
                    column[i] = *value;
                }
                for i in k + 1..d {
                    let own = column[i];
                    let rest = &mut values[row(i) + k + 1..row(i) + i + 1];
                    for (value, other) in rest.iter_mut().zip(&column[k + 1..]) {
                        (0..LANES).for_each(|lane| value[lane] -= own[lane] * other[lane]);
                    }
                }
            }
        }
    }

    /// Replaces right sides by solutions, `[count, dim]`.
    pub(super) fn solve(&self, sides: &mut [f32]) {
        let d = self.dim;
        let mut x = vec![[0f32; LANES]; d];
        for (values, sides) in self.values.chunks_exact(triangle(d)).zip(sides.chunks_mut(LANES * d)) {
            for (lane, side) in sides.chunks_exact(d).enumerate() {
                x.iter_mut().zip(side).for_each(|(x, side)| x[lane] = *side);
            }
            for i in 0..d {
                let mut sum = x[i];
                for (factor, x) in values[row(i)..row(i) + i].iter().zip(&x) {
                    (0..LANES).for_each(|lane| sum[lane] -= factor[lane] * x[lane]);
                }
                let inverse = values[row(i) + i];
                (0..LANES).for_each(|lane| x[i][lane] = sum[lane] * inverse[lane]);
            }
            for i in (0..d).rev() {
                let inverse = values[row(i) + i];
                (0..LANES).for_each(|lane| x[i][lane] *= inverse[lane]);
                let own = x[i];
                for (factor, x) in values[row(i)..row(i) + i].iter().zip(&mut x) {
                    (0..LANES).for_each(|lane| x[lane] -= factor[lane] * own[lane]);
                }
            }
            for (lane, side) in sides.chunks_exact_mut(d).enumerate() {
                side.iter_mut().zip(&x).for_each(|(side, x)| *side = x[lane]);
            }
        }
    }
}
