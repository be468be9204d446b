// What a token's experts make of it: one workgroup a token goes through its experts in order. Experts are f32.

// workgroups: x_count

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> ids: array<u32>;
@group(0) @binding(2) var<storage, read> weights: array<f32>;
@group(0) @binding(3) var<storage, read> gate: array<f32>;
@group(0) @binding(4) var<storage, read> up: array<f32>;
@group(0) @binding(5) var<storage, read> down: array<f32>;
@group(0) @binding(6) var<storage, read_write> out: array<f32>;

const n = x_columns;
const m = down_2;

const SQRT_HALF = 0.70710678118654752;

// 1 - erf(|x|) by 7.1.26 of Abramowitz and Stegun, whose error is at most 1.5e-7.
fn erf_rest(x: f32) -> f32 {
    let t = 1.0 / (1.0 + 0.3275911 * abs(x));
    let series = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t;
    return series * exp(-x * x);
}

fn activate(x: f32) -> f32 {
    if (kind_none) {
        return x;
    }
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

var<workgroup> hidden: array<f32, m>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let row = group.x * n;
    for (var i = thread; i < n; i += 256u) {
        out[row + i] = 0.0;
    }
    for (var place = 0u; place < ids_columns; place++) {
        let weight = weights[group.x * ids_columns + place];
        let expert = ids[group.x * ids_columns + place];
        if (weight != 0.0) {
            for (var j = thread; j < m; j += 256u) {
                var sums = vec2<f32>();
                let at = (expert * gate_1 + j) * n;
                for (var i = 0u; i < n; i++) {
                    if (has_up) {
                        sums += x[row + i] * vec2<f32>(gate[at + i], up[at + i]);
                    } else {
                        sums += x[row + i] * vec2<f32>(gate[at + i], gate[at + m * n + i]);
                    }
                }
                hidden[j] = activate(sums.x) * sums.y;
            }
        }
        workgroupBarrier();
        if (weight != 0.0) {
            for (var i = thread; i < n; i += 256u) {
                var sum = 0.0;
                for (var j = 0u; j < m; j++) {
                    sum += hidden[j] * down[(expert * n + i) * m + j];
                }
                out[row + i] += weight * sum;
            }
        }
        workgroupBarrier();
    }
}
