// A nonlinearity of every element.

// workgroups: ceil(x_columns / 64), x_count

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> out: array<f32>;

const SQRT_HALF = 0.70710678118654752;

// 1 - erf(|x|) by 7.1.26 of Abramowitz and Stegun, whose error is at most 1.5e-7.
fn erf_rest(x: f32) -> f32 {
    let t = 1.0 / (1.0 + 0.3275911 * abs(x));
    let series = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t;
    return series * exp(-x * x);
}

fn activate(x: f32) -> f32 {
    if (kind_silu) {
        return x / (1.0 + exp(-x));
    }
    if (kind_sigmoid) {
        return 1.0 / (1.0 + exp(-x));
    }
    if (kind_relu) {
        return max(x, 0.0);
    }
    if (kind_gelu) {
        let rest = erf_rest(x * SQRT_HALF);
        return 0.5 * x * select(rest, 2.0 - rest, x > 0.0);
    }
    // tanh overflows on some cards where its argument is large
    let inner = clamp(0.7978845608028654 * (x + 0.044715 * x * x * x), -20.0, 20.0);
    return 0.5 * x * (1.0 + tanh(inner));
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let column = group.x * 64u + thread;
    if (column >= x_columns) {
        return;
    }
    let at = group.y * x_columns + column;
    out[at] = activate(x[at]);
}
